//! The sampler against frequencies that are known, and against a full sort.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::softmax::Softmax;
use super::{SampleOptions, Sampler, logprobs};

fn frequencies(options: SampleOptions, logits: &[f32]) -> Vec<f32> {
    let mut sampler = Sampler::new(options, logits.len()).unwrap();
    let mut counts = vec![0.0; logits.len()];
    (0..20_000).for_each(|_| counts[sampler.sample(logits) as usize] += 1.0 / 20_000.0);
    counts
}

fn hot() -> SampleOptions {
    SampleOptions { temperature: 1.0, seed: 7, ..SampleOptions::default() }
}

fn logits() -> [f32; 4] {
    [0.1f32, 0.4, 0.2, 0.3].map(f32::ln)
}

fn near(found: &[f32], expected: [f32; 4]) {
    let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.015);
    assert!(close, "{found:?} should be near {expected:?}");
}

#[test]
fn frequencies_follow_the_options() {
    near(&frequencies(hot(), &logits()), [0.1, 0.4, 0.2, 0.3]);
    near(&frequencies(SampleOptions { top_k: 2, ..hot() }, &logits()), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    near(&frequencies(SampleOptions { top_p: 0.65, ..hot() }, &logits()), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    near(&frequencies(SampleOptions { min_p: 0.45, ..hot() }, &logits()), [0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
    // Temperature ½ squares the probabilities.
    near(
        &frequencies(SampleOptions { temperature: 0.5, ..hot() }, &logits()),
        [1. / 30., 16. / 30., 4. / 30., 9. / 30.],
    );
    // A bias of ln 4 makes a token four times as likely, -∞ impossible.
    let logit_bias = vec![(0, 4f32.ln()), (1, f32::NEG_INFINITY)];
    near(&frequencies(SampleOptions { logit_bias, ..hot() }, &logits()), [4. / 9., 0.0, 2. / 9., 3. / 9.]);
}

#[test]
fn seeds_and_ties_are_deterministic() {
    let draw = |seed| {
        let mut s = Sampler::new(SampleOptions { seed, ..hot() }, 64).unwrap();
        (0..32).map(|_| s.sample(&[0.5; 64])).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // What these seeds have always given.
    assert_eq!(draw(1)[..8], [35, 25, 63, 5, 13, 38, 24, 14]);
    let mut greedy = Sampler::new(SampleOptions::default(), 3).unwrap();
    assert_eq!(greedy.sample(&[1.0, 2.0, 2.0]), 1);
}

#[test]
fn repetition_penalty_works_on_both_signs_and_nan_is_never_chosen() {
    let options = SampleOptions { repetition_penalty: 2.0, ..SampleOptions::default() };
    let mut s = Sampler::new(options, 4).unwrap();
    assert_eq!(s.sample(&[3.0, 2.0, f32::NAN, 0.0]), 0);
    s.accept(0);
    assert_eq!(s.sample(&[3.0, 2.0, f32::NAN, 0.0]), 1);
    assert_eq!(s.sample(&[-1.0, -1.5, f32::NAN, f32::NEG_INFINITY]), 1);
    assert_eq!(Sampler::new(hot(), 2).unwrap().sample(&[f32::NAN, f32::NAN]), 0);
    assert_eq!(Sampler::new(hot(), 2).unwrap().sample(&[f32::INFINITY, 1.0]), 0);
    assert_eq!(Sampler::new(SampleOptions::default(), 2).unwrap().sample(&[f32::NAN, f32::NEG_INFINITY]), 1);
}

#[test]
fn the_prompt_counts_for_repetition_alone() {
    let chosen = |options, logits: &[f32]| {
        let mut s = Sampler::new(options, logits.len()).unwrap();
        s.accept_prompt(&[0, 0, 0, 99]);
        let before = s.sample(logits);
        [1, 1, 2].iter().for_each(|&token| s.accept(token));
        (before, s.sample(logits))
    };
    let default = SampleOptions::default;
    // Presence takes 0.5 of tokens 1 and 2, frequency 1 and 0.5, repetition halves tokens 0, 1 and 2.
    assert_eq!(chosen(SampleOptions { presence_penalty: 0.5, ..default() }, &[1.0, 1.6, 1.4, 0.0]), (1, 1));
    assert_eq!(chosen(SampleOptions { presence_penalty: 0.5, ..default() }, &[1.0, 1.4, 1.6, 0.0]), (2, 2));
    assert_eq!(chosen(SampleOptions { presence_penalty: 0.5, ..default() }, &[1.0, 1.2, 1.4, 0.0]), (2, 0));
    assert_eq!(chosen(SampleOptions { frequency_penalty: 0.5, ..default() }, &[1.0, 2.1, 1.7, 0.0]), (1, 2));
    assert_eq!(chosen(SampleOptions { repetition_penalty: 2.0, ..default() }, &[3.0, 2.0, 2.0, 1.7]), (1, 3));
    // The bias comes first, and is multiplied with the rest; one id may be named twice.
    let logit_bias = vec![(3, 1.0), (0, 2.0), (3, 0.5)];
    let options = SampleOptions { repetition_penalty: 2.0, logit_bias, ..default() };
    assert_eq!(chosen(options, &[2.0, 0.0, 0.0, 0.6]), (3, 3));
}

#[test]
fn sampling_with_logprobs_is_sampling() {
    let options = SampleOptions { top_logprobs: 2, presence_penalty: 1.0, ..hot() };
    let mut plain = Sampler::new(options.clone(), 4).unwrap();
    let mut reporting = Sampler::new(options, 4).unwrap();
    for _ in 0..20 {
        let sampled = reporting.sample_with_logprobs(&logits());
        assert_eq!(sampled.token, plain.sample(&logits()));
        // Of the model, whatever the penalty does.
        assert_eq!(sampled, logprobs(&logits(), sampled.token, 2));
        assert_eq!(sampled.top.iter().map(|t| t.token).collect::<Vec<_>>(), [1, 3]);
        plain.accept(sampled.token);
        reporting.accept(sampled.token);
    }
}

/// A sequence to sample from: logits after bias and penalties, done one by one.
fn penalised(options: &SampleOptions, prompt: &[u32], output: &[u32], logits: &[f32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    for (id, logit) in logits.iter_mut().enumerate() {
        let id = id as u32;
        options.logit_bias.iter().filter(|b| b.0 == id).for_each(|b| *logit += b.1);
        if prompt.contains(&id) || output.contains(&id) {
            let r = options.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
        }
        let count = output.iter().filter(|&&token| token == id).count() as f32;
        if count > 0.0 {
            *logit -= options.frequency_penalty * count + options.presence_penalty;
        }
    }
    logits
}

/// What a full sort says: everything that may be drawn with its probability, most likely first.
fn sorted(options: &SampleOptions, logits: &[f32]) -> Vec<(f64, u32)> {
    let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).filter(|c| !c.0.is_nan()).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if options.top_k > 0 {
        all.truncate(options.top_k);
    }
    let Some(&(top, _)) = all.first() else { return vec![(1.0, 0)] };
    let softmax = Softmax { top, temperature: options.temperature };
    let mut all: Vec<_> = all.iter().map(|&(l, id)| (f64::from(softmax.weight(l)), id)).collect();
    all.retain(|c| c.0 > 0.0 && c.0 >= f64::from(options.min_p));
    let total: f64 = all.iter().map(|c| c.0).sum();
    let mut reached = 0.0;
    let nucleus = all.iter().position(|c| {
        reached += c.0;
        reached >= f64::from(options.top_p) * total
    });
    if options.top_p < 1.0 {
        all.truncate(nucleus.unwrap() + 1);
    }
    let total: f64 = all.iter().map(|c| c.0).sum();
    all.iter().map(|c| (c.0 / total, c.1)).collect()
}

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn uniform(&mut self) -> f32 {
        self.0.next_u32() as f32 / u32::MAX as f32
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Flat, peaked, full of ties, in order, with what is not finite.
    fn row(&mut self, vocab: usize) -> Vec<f32> {
        let scale = self.pick(&[0.0, 0.01, 1.0, 10.0, 100.0]);
        let steps = self.pick(&[1e6, 5.0]);
        let mut row: Vec<f32> = (0..vocab).map(|_| (self.uniform() * steps).floor() / steps * scale - 3.0).collect();
        match self.below(4) {
            0 => (0..5).for_each(|_| row[self.below(vocab)] += 15.0),
            1 => row.sort_by(f32::total_cmp),
            2 => (0..9).for_each(|_| {
                let id = self.below(vocab);
                row[id] = self.pick(&[f32::NAN, f32::NEG_INFINITY, f32::MIN, 0.0, -0.0]);
            }),
            _ => {}
        }
        row
    }

    fn options(&mut self, vocab: usize) -> SampleOptions {
        let logit_bias = match self.below(3) {
            0 => (0..4).map(|_| (self.below(vocab) as u32, self.pick(&[1.5, -2.0, 30.0, f32::NEG_INFINITY]))).collect(),
            _ => Vec::new(),
        };
        SampleOptions {
            temperature: self.pick(&[0.05, 0.7, 1.0, 2.0]),
            top_k: self.pick(&[0, 0, 1, 40, 1500, 200_000]),
            top_p: self.pick(&[1.0, 0.95, 0.5, 0.999, 1e-6]),
            min_p: self.pick(&[0.0, 0.0, 0.05, 1.0]),
            repetition_penalty: self.pick(&[1.0, 1.3, 0.8]),
            presence_penalty: self.pick(&[0.0, 0.5, -1.0]),
            frequency_penalty: self.pick(&[0.0, 0.25, -0.5]),
            logit_bias,
            top_logprobs: 0,
            seed: self.0.next_u64(),
        }
    }

    /// Draws `draws` tokens from one row and compares each.
    fn compare(&mut self, vocab: usize, draws: usize) {
        let (logits, options) = (self.row(vocab), self.options(vocab));
        let mut some = |n| (0..n).map(|_| self.below(vocab) as u32).collect::<Vec<_>>();
        let (prompt, output) = (some(5), some(3));
        let mut sampler = Sampler::new(options.clone(), vocab).unwrap();
        sampler.accept_prompt(&prompt);
        output.iter().for_each(|&token| sampler.accept(token));
        let distribution = sorted(&options, &penalised(&options, &prompt, &output, &logits));
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        for draw in 0..draws {
            let mut left = f64::from(rng.next_u32() >> 8) / f64::from(1 << 24);
            let expected = distribution.iter().find(|c| {
                left -= c.0;
                left < 0.0
            });
            let found = sampler.sample(&logits);
            assert_eq!(found, expected.unwrap().1, "draw {draw} of {vocab} tokens, {options:?}");
        }
        let greedy = SampleOptions { temperature: 0.0, ..options };
        let adjusted = penalised(&greedy, &prompt, &output, &logits);
        let first = (0..vocab)
            .filter(|&id| !adjusted[id].is_nan())
            .reduce(|a, b| if adjusted[b] > adjusted[a] { b } else { a });
        let mut sampler = Sampler::new(greedy, vocab).unwrap();
        sampler.accept_prompt(&prompt);
        output.iter().for_each(|&token| sampler.accept(token));
        assert_eq!(sampler.sample(&logits), first.unwrap_or(0) as u32);
    }
}

#[test]
fn tokens_are_those_of_a_full_sort() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(0));
    for _ in 0..10_000 {
        let vocab = 1 + random.below(200);
        random.compare(vocab, 2);
    }
    for _ in 0..600 {
        let vocab = 1 + random.below(10_000);
        random.compare(vocab, 10);
    }
    for _ in 0..40 {
        let vocab = 1 + random.below(150_000);
        random.compare(vocab, 20);
    }
}
