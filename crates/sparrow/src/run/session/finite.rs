//! Logits that are not numbers: noticed in every row, and traced to where they come from.

use super::Session;
use crate::DType;
use crate::backend::{Backend, Observer, Point};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tensor::Weight;

impl<B: Backend> Session<B> {
    /// Refuses logits that are NaN or infinite: whatever is made of them would be a lie.
    ///
    /// # Errors
    /// Names the token and the layer; the tokens of the step are then not in their sequences.
    pub(super) fn check_logits(&mut self) -> Result<()> {
        let rows = self.logits.chunks_exact(self.model.spec.vocab_size);
        let Some(number) = rows.zip(&self.wanted).find_map(|(row, &number)| (!are_finite(row)).then_some(number))
        else {
            return Ok(());
        };
        let (row, step) = (self.rows[number], self.rows.clone());
        let cause = self.trace(row.sequence, row.position);
        for run in step.chunk_by(|a, b| a.sequence == b.sequence) {
            self.truncate(run[0].sequence, run[0].position)?;
        }
        self.logits.clear();
        Err(Error::NotFinite { token: row.position + 1, cause })
    }

    /// Where the numbers of a sequence's token become not finite: computed once more, under observation.
    fn trace(&mut self, sequence: usize, position: usize) -> String {
        let tokens = self.tokens(sequence)[..=position].to_vec();
        let mut first = FirstNotFinite(None);
        let again = self.add_sequence(tokens.len()).and_then(|again| {
            let seen = self.observe(again, &tokens, &mut first);
            self.remove_sequence(again)?;
            seen
        });
        if let Err(error) = again {
            return format!("looking for the reason failed ({error})");
        }
        let (place, layer) = match first.0 {
            Some((0, Point::Residual)) => ("the embedding".to_owned(), None),
            Some((after, Point::Residual)) => (format!("the MLP of layer {}", after - 1), Some(after - 1)),
            Some((layer, Point::Neurons)) => (format!("the MLP of layer {layer}"), Some(layer)),
            Some((layer, _)) => (format!("the attention of layer {layer}"), Some(layer)),
            None => ("the head".to_owned(), None),
        };
        let mend = match weight_not_finite(&self.model, layer) {
            Some(name) => format!("{name} holds NaN or infinity: get the weights again, or convert them anew"),
            None if self.kv.dtype.unwrap_or(self.model.default_kv_dtype()) == DType::F16 => {
                "its weights are finite, so numbers overflow: --kv-dtype bf16 or f32 has room for larger ones"
                    .to_owned()
            }
            None => {
                "its weights are finite, so numbers overflow: config.json may not be that of these weights".to_owned()
            }
        };
        format!("they become so in {place}; {mend}")
    }
}

fn are_finite(values: &[f32]) -> bool {
    // Without a branch in the loop it is made of vectors.
    !values.iter().fold(false, |bad, value| bad | !value.is_finite())
}

/// The first matrix of a layer, or of those outside the layers, that has elements which are not finite.
fn weight_not_finite(model: &Model, layer: Option<usize>) -> Option<String> {
    let (spec, names) = (&model.spec, &model.spec.names);
    let embedding = (format!("{}.weight", names.embedding), &model.weights.embedding);
    let wanted = |name: &str| match layer {
        Some(layer) => name.starts_with(&names.layer(layer, "")),
        None => !names.is_of_layer(name),
    };
    let finite = |weight: &Weight| {
        let mut row = vec![0.0; weight.cols()];
        (0..weight.rows()).all(|r| {
            weight.decode(r..r + 1, &mut row);
            are_finite(&row)
        })
    };
    let mut named = std::iter::once(embedding).chain(model.weights.named(spec)).filter(|(name, _)| wanted(name));
    named.find(|(_, weight)| !finite(weight)).map(|(name, _)| name)
}

/// The first place at which something is not finite.
struct FirstNotFinite(Option<(usize, Point)>);

impl Observer for FirstNotFinite {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], _m: usize) {
        if self.0.is_none() && !are_finite(values) {
            self.0 = Some((layer, point));
        }
    }
}
