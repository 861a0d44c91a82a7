//! A step of many segments is its segments one by one.

use std::sync::Arc;

use proptest::prelude::*;
use sparrow::session::{Logits, Segment};
use sparrow::{Cpu, DType, KvOptions, Model, Selector, Session};
use sparrow_testing::*;

use super::{SAME, caches, model};

/// Rows up to which a row's result does not depend on how many there are.
const FEW: usize = 8;

/// The next tokens of a sequence, as many, and whose logits are wanted.
type Piece = (usize, usize, Logits);

/// Two sessions with three sequences of different lengths, and the texts that these go on with.
struct Pair {
    texts: Vec<Vec<u32>>,
    together: Session,
    one_by_one: Session,
}

impl Pair {
    fn new(cpu: &Arc<Cpu>, model: &Arc<Model>, selector: &Selector, kv: KvOptions) -> Self {
        let (mut random, vocab) = (Random::new(1), model.spec.vocab_size);
        let texts = (0..3).map(|_| random.ids(vocab, model.spec.context_length())).collect();
        let session = || session_with(cpu, model, selector.clone(), 3, kv);
        let mut pair = Pair { texts, together: session(), one_by_one: session() };
        for (sequence, len) in [(0, 90), (1, 5)] {
            for session in [&mut pair.together, &mut pair.one_by_one] {
                session.prefill(sequence, &pair.texts[sequence][..len]).unwrap();
            }
        }
        pair
    }

    /// Logits of the pieces, in one step and one by one.
    fn run(&mut self, pieces: &[Piece]) -> [Vec<Vec<f32>>; 2] {
        let segment = |&(sequence, count, logits): &Piece| {
            let from = self.together.len(sequence);
            Segment { sequence, tokens: &self.texts[sequence][from..from + count], logits }
        };
        let segments: Vec<Segment> = pieces.iter().map(segment).collect();
        let vocab = self.together.model().spec.vocab_size;
        let together = self.together.step(&segments).unwrap().chunks_exact(vocab).map(<[f32]>::to_vec).collect();
        let mut one_by_one = Vec::new();
        for &Segment { sequence, tokens, logits } in &segments {
            let session = &mut self.one_by_one;
            match (logits, tokens) {
                (Logits::None, _) => session.observe(sequence, tokens, &mut ()).unwrap(),
                (Logits::All, _) => one_by_one.extend(prefill_in(session, sequence, tokens, &[tokens.len()])),
                (Logits::Last, &[token]) => one_by_one.push(session.decode(&[(sequence, token)]).unwrap().to_vec()),
                (Logits::Last, _) => one_by_one.push(session.prefill(sequence, tokens).unwrap().to_vec()),
            }
        }
        for sequence in 0..3 {
            assert_eq!(self.together.tokens(sequence), self.one_by_one.tokens(sequence));
        }
        [together, one_by_one]
    }
}

/// Pieces of different sequences, of no more than [`FEW`] rows together.
fn few_rows() -> impl Strategy<Value = Vec<Piece>> {
    let logits = prop_oneof![Just(Logits::None), Just(Logits::Last), Just(Logits::All)];
    let order = Just(vec![0, 1, 2]).prop_shuffle();
    (order, prop::collection::vec((1..=5usize, logits), 1..=3)).prop_map(|(order, pieces)| {
        let mut left = FEW;
        let pieces = order.into_iter().zip(pieces).map(|(sequence, (count, logits))| {
            let count = count.min(left);
            left -= count;
            (sequence, count, logits)
        });
        pieces.filter(|piece| piece.1 > 0).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segments_of_few_rows_are_what_they_are_one_by_one_bit_for_bit(
        steps in prop::collection::vec(few_rows(), 1..12),
        bf16 in any::<bool>(),
        sparse in any::<bool>(),
        int8 in any::<bool>(),
    ) {
        let kv = KvOptions { dtype: Some(if int8 { DType::I8 } else { DType::F32 }), ..caches()[usize::from(sparse)] };
        let mut spec = odd_spec();
        spec.max_position_embeddings = 200;
        let model = Arc::new(random_model(&spec, if bf16 { DType::BF16 } else { DType::F32 }, 3));
        for cpu in tiers() {
            let mut pair = Pair::new(cpu, &model, &Selector::dense(), kv);
            for pieces in &steps {
                let [together, one_by_one] = pair.run(pieces);
                prop_assert!(together == one_by_one, "{cpu:?}, {pieces:?}");
            }
        }
    }
}

#[test]
fn segments_of_many_rows_are_what_they_are_one_by_one() {
    use Logits::{All, Last, None};
    let steps: [&[Piece]; 7] = [
        &[(0, 1, Last), (1, 20, None), (2, 30, All)],
        &[(2, 1, Last), (0, 1, Last), (1, 1, Last)],
        &[(1, 40, Last), (0, 3, All)],
        &[(2, 70, None)],
        &[(0, 1, Last), (2, 9, Last), (1, 2, All)],
        &[(1, 100, All), (2, 1, None), (0, 50, Last)],
        &[(0, 1, Last), (1, 1, Last), (2, 1, Last)],
    ];
    for dtype in [DType::F32, DType::BF16] {
        for text in ["dense", "gate:quantile=0.6", "sign:quantile=0.5", "input:quantile=0.4", "skip:attention=1"] {
            let mut spec = odd_spec();
            spec.max_position_embeddings = 300;
            let (model, selector) = prepare(random_model(&spec, dtype, 4), parse(text));
            for cpu in tiers() {
                // Rounded activations may tip which neurons and inputs count.
                if rounds(cpu, dtype) && text != "dense" {
                    continue;
                }
                for kv in caches() {
                    let bound = if rounds(cpu, dtype) {
                        rounded_tolerance(spec.num_layers)
                    } else if kv.sparsity.is_some() {
                        // Sums in another order may tip which of two nearly equal elements is pruned.
                        1e-3
                    } else {
                        SAME
                    };
                    let mut pair = Pair::new(cpu, &model, &selector, kv);
                    for (i, pieces) in steps.iter().enumerate() {
                        let [together, one_by_one] = pair.run(pieces);
                        let worst = worst_difference(&together, &one_by_one);
                        assert!(worst < bound, "{dtype}, {text}, {cpu:?}, {kv:?}, step {i}: {worst:.1e} off");
                    }
                }
            }
        }
    }
}

#[test]
fn logits_are_those_that_are_wanted() {
    let model = model(64);
    let vocab = model.spec.vocab_size;
    let ids = Random::new(2).ids(vocab, 12);
    let mut session = session_with(&cpu(), &model, Selector::dense(), 3, caches()[0]);
    let all = prefill_in(&mut session, 0, &ids, &[12]);
    session.truncate(0, 0).unwrap();
    let segment = |sequence, tokens, logits| Segment { sequence, tokens, logits };
    let nothing = session.step(&[segment(0, &ids[..3], Logits::None)]).unwrap();
    assert!(nothing.is_empty());
    assert!(session.step(&[]).unwrap().is_empty());
    let some =
        [segment(1, &ids[..4], Logits::All), segment(2, &ids[..5], Logits::Last), segment(0, &ids[3..6], Logits::None)];
    let logits: Vec<Vec<f32>> = session.step(&some).unwrap().chunks_exact(vocab).map(<[f32]>::to_vec).collect();
    assert_eq!(logits.len(), 5);
    let expected: Vec<Vec<f32>> = all[..4].iter().chain([&all[4]]).cloned().collect();
    let worst = worst_difference(&logits, &expected);
    assert!(worst < SAME, "{worst:.1e} off");
    assert_eq!([0, 1, 2].map(|s| session.len(s)), [6, 4, 5]);
    assert_eq!(session.tokens(0), &ids[..6]);
}

/// A prompt that comes piece by piece is rotated for its whole length, if that is said before: all golden models, of which some
/// rotate by it.
#[test]
fn a_prompt_in_pieces_is_the_prompt() {
    let mut goldens: Vec<_> = std::fs::read_dir(goldens_dir()).unwrap().map(|e| e.unwrap().path()).collect();
    goldens.retain(|path| path.is_dir());
    for golden in goldens {
        let model = Arc::new(load(&golden));
        let ids = Random::new(3).ids(model.spec.vocab_size, model.spec.context_length().min(40));
        let mut session = session(&exact(), &model, Selector::dense(), 2, Some(DType::F32));
        let whole = prefill_in(&mut session, 0, &ids, &[ids.len()]);
        session.expect(1, ids.len()).unwrap();
        let mut pieces = Vec::new();
        for tokens in ids.chunks(7) {
            let logits = session.step(&[Segment { sequence: 1, tokens, logits: Logits::All }]).unwrap();
            pieces.extend(logits.chunks_exact(model.spec.vocab_size).map(<[f32]>::to_vec));
        }
        let worst = worst_difference(&pieces, &whole);
        assert!(worst < SAME, "{}: {worst:.1e} off", golden.display());
        // What was expected has come: both go on alike.
        if ids.len() < session.capacity(0) {
            let logits = session.decode(&[(0, 1), (1, 1)]).unwrap();
            let (a, b) = logits.split_at(model.spec.vocab_size);
            assert!(difference(a, b) < SAME, "{}: goes on in another way", golden.display());
        }
    }
}
