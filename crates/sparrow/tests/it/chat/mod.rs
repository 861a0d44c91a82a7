//! Conversations: templates and what becomes of them.

mod prompts;
mod templates;
