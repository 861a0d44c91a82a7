//! How a model's authors would have it sampled, from `generation_config.json`.

use crate::checkpoint::ModelFiles;
use crate::checkpoint::fields::Fields;
use crate::error::Result;

/// Values that `generation_config.json` suggests; what it does not say is none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SuggestedSampling {
    /// Divides logits; none where the model is to be run greedily.
    pub temperature: Option<f32>,
    /// The most likely tokens to sample from.
    pub top_k: Option<usize>,
    /// The probability that the tokens to sample from reach.
    pub top_p: Option<f32>,
    /// The least likelihood of a token beside that of the most likely one.
    pub min_p: Option<f32>,
    /// Makes tokens that occurred already less likely.
    pub repetition_penalty: Option<f32>,
}

/// Reads what `generation_config.json` suggests, if it is there.
///
/// # Errors
/// If it cannot be read or parsed, or a field is no number.
pub fn read_suggested_sampling(files: &ModelFiles) -> Result<SuggestedSampling> {
    const NAME: &str = "generation_config.json";
    let Some(json) = files.json(NAME)? else { return Ok(SuggestedSampling::default()) };
    let path = files.path_of(NAME);
    let fields = Fields::new(&path, &json)?;
    let number = |name: &str| Ok(fields.number(name)?.map(|value| value as f32));
    let repetition_penalty = number("repetition_penalty")?;
    if fields.bool("do_sample")? != Some(true) {
        return Ok(SuggestedSampling { repetition_penalty, ..SuggestedSampling::default() });
    }
    Ok(SuggestedSampling {
        // As transformers has it where only do_sample is said.
        temperature: Some(number("temperature")?.unwrap_or(1.0)),
        top_k: fields.usize("top_k", 0..=usize::MAX)?,
        top_p: number("top_p")?,
        min_p: number("min_p")?,
        repetition_penalty,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggested(json: &str) -> Result<SuggestedSampling> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
        read_suggested_sampling(&ModelFiles::open(dir.path()).unwrap())
    }

    #[test]
    fn sampling_is_suggested_where_a_model_is_to_be_sampled() {
        let none = SuggestedSampling::default();
        let all = r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}"#;
        let expected = SuggestedSampling {
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            min_p: None,
            repetition_penalty: Some(1.05),
        };
        assert_eq!(suggested(all).unwrap(), expected);
        assert_eq!(suggested(r#"{"temperature": 0.7}"#).unwrap(), none);
        assert_eq!(suggested(r#"{"do_sample": true}"#).unwrap(), SuggestedSampling { temperature: Some(1.0), ..none });
        let penalty = SuggestedSampling { repetition_penalty: Some(1.1), ..none };
        assert_eq!(suggested(r#"{"do_sample": false, "top_k": 5, "repetition_penalty": 1.1}"#).unwrap(), penalty);
        let message = suggested(r#"{"do_sample": true, "top_p": "0.8"}"#).unwrap_err().to_string();
        assert!(message.contains("field top_p must be a number, found \"0.8\""), "{message}");
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(read_suggested_sampling(&ModelFiles::open(nothing.path()).unwrap()).unwrap(), none);
    }
}
