//! `dense`: nothing is left out.

use super::SelectorSpec;
use super::kind::{Kind, Loaded};
use super::selector::Selector;
use crate::error::Result;

/// The dense model: the reference of all others.
pub struct Dense;

impl Kind for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn usage(&self) -> &'static str {
        "dense"
    }

    fn help(&self) -> &'static str {
        "everything is computed"
    }

    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
        match parameters {
            None => Ok(None),
            Some(_) => Err("selector dense takes no threshold".into()),
        }
    }

    fn ready(&self, _: &SelectorSpec, _: &Loaded) -> Result<Selector> {
        Ok(Selector::Dense)
    }
}
