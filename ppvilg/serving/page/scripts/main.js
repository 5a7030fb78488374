/** Puts the parts of the page together. */

import { byId } from "./base/dom.js";
import { language, onLanguage, setLanguage, t, translate } from "./base/i18n.js";
import { startTheme } from "./base/theme.js";
import { startDrop } from "./compose/drop.js";
import { openHelper } from "./compose/helper.js";
import { startKnowledge } from "./compose/knowledge.js";
import { startMore } from "./compose/more.js";
import { startPrompt } from "./compose/prompt.js";
import { startStart } from "./compose/start.js";
import { startStyles } from "./compose/styles.js";
import { startSubmit } from "./compose/submit.js";
import { startGallery } from "./pictures/gallery.js";
import { openPicture, pictureGone, showJob, startJobs } from "./pictures/jobs.js";
import { startRecipe } from "./pictures/recipe.js";
import { startStage } from "./pictures/stage.js";
import { startService } from "./service.js";

function languageButton() {
  const button = byId("language");
  const name = () => {
    button.textContent = t("language.other");
    button.title = t("language.name");
    button.lang = language() === "zh" ? "en" : "zh-CN";
    document.title = t("brand");
  };
  button.addEventListener("click", () => setLanguage(language() === "zh" ? "en" : "zh"));
  onLanguage(name);
  name();
}

translate();
startTheme();
languageButton();
startPrompt(openHelper);
startKnowledge();
startStyles();
startMore();
startStart();
startDrop();
startSubmit(showJob);
startStage(pictureGone);
startGallery(openPicture);
startRecipe(showJob);
startService();
startJobs();
