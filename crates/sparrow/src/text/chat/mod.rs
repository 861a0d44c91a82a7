//! Conversations as prompts, by the template that a model brings.

mod environment;
mod marks;
mod python_json;
mod source;
mod template;
mod turn_end;

pub use minijinja::Value;
pub use template::{ChatTemplate, Conversation};
pub use turn_end::TurnEnd;
