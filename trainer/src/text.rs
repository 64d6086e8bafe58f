//! The CLIP text side: tokens, prompts, transformer, bin embeddings.
