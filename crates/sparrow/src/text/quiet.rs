//! Panics of the tokenizer library as errors: it meets some malformed files, and texts it cannot handle, with one.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::error::{Error, Result};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `call` returns; a panic of its is the error `refusal`, and is not printed.
pub fn quietly<T>(refusal: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                before(panic);
            }
        }));
    });
    QUIET.set(true);
    let returned = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    match returned {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(_) => Err(Error::Tokenizer(refusal.to_owned())),
    }
}
