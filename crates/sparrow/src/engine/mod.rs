//! Requests in, tokens out: many prompts served together by one session.
//!
//! [`Engine::step`] is one turn: the [scheduler](Scheduler) says which tokens come next, the session computes them, and every
//! request that got its next token is told so by an [`Event`]. [`Engine::events`] goes on until nothing is left to do.

mod event;
mod request;
mod running;
mod scheduler;
mod turn;

pub use event::{Event, Finish, Usage};
pub use request::Request;
pub use scheduler::{Limits, Piece, QueueFull, RequestId, Scheduler};
pub use turn::{Engine, EngineOptions};
