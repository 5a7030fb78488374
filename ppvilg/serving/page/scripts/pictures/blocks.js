/** Which expert draws which steps of a job, in drawing order: from the noisiest block to expert 0. */

/** [{expert, first_step, steps, from, to}]: what the service says, else what boundaries and a plain schedule say. */
export function blocksOf(job, model) {
  if (job.blocks?.length) return job.blocks;
  if (!model) return [];
  const { num_inference_steps: asked, strength, image, mask } = job.request;
  const total = asked ?? model.defaults.num_inference_steps;
  const share = image ? (strength ?? (mask ? model.defaults.strength_with_mask : model.defaults.strength)) : 1;
  const skipped = total - Math.min(total, Math.floor(total * share));
  const blocks = [];
  for (let step = skipped; step < total; step += 1) {
    const timestep = (model.num_train_timesteps * (total - step)) / total - 1;
    const expert = model.boundaries.findLastIndex((boundary) => boundary <= timestep);
    const last = blocks[blocks.length - 1];
    if (last?.expert === expert) last.steps += 1;
    else {
      const [from, to] = model.boundaries.slice(expert, expert + 2);
      blocks.push({ expert, first_step: step - skipped, steps: 1, from, to });
    }
  }
  return blocks;
}

/** Newest preview of one picture of a job, null before the first. */
export function newestPreview(job, index) {
  return job.previews.filter((preview) => preview.picture === index).at(-1) ?? null;
}

/** Preview at the end of a block, null while the block is not done. */
export function endOfBlock(job, index, expert) {
  return job.previews.find((each) => each.picture === index && each.expert === expert && each.end_of_block) ?? null;
}

/** Steps done of one picture of a job. */
export function stepsDone(job, index, blocks) {
  const total = blocks.reduce((sum, block) => sum + block.steps, 0);
  if (job.pictures.some((picture) => picture.index === index)) return total;
  if (job.request.num_images === 1 && job.progress) return job.progress.steps_done;
  return newestPreview(job, index)?.step ?? 0;
}

/** Place of an expert between the last touches, 0, and the first layout, 1: its colour in the page. */
export const turnOf = (expert, count) => (count > 1 ? expert / (count - 1) : 1);
