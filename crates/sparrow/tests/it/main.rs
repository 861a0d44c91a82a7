//! The library as a whole, by what is judged: the files it reads, the numbers it computes, what it leaves out, what it keeps in
//! memory, and how it is run.

mod architecture;
mod chat;
mod files;
mod memory;
mod numbers;
mod run;
mod sparse;
mod text;
