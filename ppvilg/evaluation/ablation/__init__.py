"""The ablation: many short trainings that differ in one thing, measured alike."""
