/** Example prompts and the helper's words, for models whose world is known, and for any other. */

const EMOJI = {
  examples: {
    zh: [
      "蓝色背景上的一辆出租车",
      "粉色背景上有三只企鹅",
      "左边是一只猫，右边是一只狗",
      "绿色背景上的一块西瓜",
      "黑色背景上的一枚火箭",
      "上面是一个月亮，下面是一棵松树",
      "黄色背景上的一只熊猫",
      "紫色背景上的两个甜甜圈",
      "白色背景上的一把吉他",
      "橙色背景上的一艘帆船",
    ],
    en: [
      "a taxi on blue background",
      "three penguins on pink background",
      "a cat on the left and a dog on the right",
      "a rocket on black background",
      "a panda on yellow background",
      "two donuts on purple background",
    ],
  },
  subject: {
    zh: [
      "一只猫",
      "三只企鹅",
      "一只熊猫",
      "两只乌龟",
      "一只蝴蝶",
      "一辆出租车",
      "一枚火箭",
      "一块西瓜",
      "两个甜甜圈",
      "一朵向日葵",
      "一道彩虹",
      "一把吉他",
    ],
    en: [
      "a cat",
      "three penguins",
      "a panda",
      "two turtles",
      "a butterfly",
      "a taxi",
      "a rocket",
      "a slice of watermelon",
      "two donuts",
      "a rainbow",
    ],
  },
  place: {
    zh: ["白色背景", "蓝色背景", "粉色背景", "绿色背景", "黄色背景", "紫色背景", "黑色背景", "橙色背景"],
    en: [
      "white background",
      "blue background",
      "pink background",
      "green background",
      "yellow background",
      "black background",
    ],
  },
};

const GENERAL = {
  examples: {
    zh: [
      "一只戴着草帽的橘猫坐在窗台上，午后的阳光",
      "江南水乡的清晨，薄雾中的石桥和乌篷船",
      "雪山下的木屋，窗里透出暖光，星空",
      "红色的纸灯笼挂满老街，雨后的石板路",
      "一艘帆船驶向落日，金色的海面",
      "竹林里的小熊猫，水墨画",
    ],
    en: [
      "an orange cat in a straw hat on a window sill, afternoon sun",
      "a stone bridge in morning mist, a boat below",
      "a wooden hut under snowy mountains, warm light in the window, stars",
    ],
  },
  subject: {
    zh: ["一只橘猫", "一位老人", "一座古寺", "一艘帆船", "一匹白马", "一片向日葵"],
    en: [
      "an orange cat",
      "an old man",
      "an ancient temple",
      "a sailing boat",
      "a white horse",
      "a field of sunflowers",
    ],
  },
  place: {
    zh: ["在窗台上", "在雪山下", "在江南水乡", "在海边", "在竹林里", "在城市的夜里"],
    en: ["on a window sill", "under snowy mountains", "by the sea", "in a bamboo forest", "in a city at night"],
  },
};

const MANNER = {
  zh: ["水墨画", "剪纸", "工笔画", "儿童插画", "胶片摄影", "极简", "细节丰富"],
  en: ["ink wash painting", "paper cut", "children's book illustration", "film photograph", "minimal", "rich detail"],
};
const LIGHT = {
  zh: ["清晨的薄雾", "午后的阳光", "金色的夕阳", "月光", "烛光", "霓虹灯", "柔和的散射光"],
  en: [
    "morning mist",
    "afternoon sun",
    "golden sunset",
    "moonlight",
    "candlelight",
    "neon lights",
    "soft diffuse light",
  ],
};

/** Words for the helper and examples of the model of this name, in this language. */
export function wordsFor(modelName, language) {
  const world = modelName?.startsWith("emoji64") ? EMOJI : GENERAL;
  const of = (part) => part[language];
  return {
    examples: of(world.examples),
    subject: of(world.subject),
    place: of(world.place),
    manner: of(MANNER),
    light: of(LIGHT),
    // 白色背景 + 一只猫 is the order the emoji world is written in
    join: world === EMOJI ? joinEmoji : joinGeneral,
  };
}

function joinEmoji({ subject, place, manner, light }, language) {
  const head = !place
    ? subject
    : !subject
      ? place
      : language === "zh"
        ? `${place}上的${subject}`
        : `${subject} on ${place}`;
  return joinParts([head, manner, light], language);
}

function joinGeneral({ subject, place, manner, light }, language) {
  const head = language === "zh" ? `${subject}${place}` : [subject, place].filter(Boolean).join(" ");
  return joinParts([head, light, manner], language);
}

const joinParts = (parts, language) => parts.filter(Boolean).join(language === "zh" ? "，" : ", ");
