//! Where the forward pass's operations run.

mod cpu;

pub use cpu::Cpu;
