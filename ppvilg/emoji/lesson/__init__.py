"""Something that a model of the emoji world has never seen: pictures to teach it, prompts for it, and its judge."""
