//! Many clients against the scheduler, without a model.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A request as its client sees it.
#[derive(Clone)]
struct Client {
    output: usize,
    /// Restarts when so many tokens were sampled, if ever.
    restart: usize,
    /// Cancelled after so many steps, if ever.
    patience: usize,
    prompt: usize,
    pending: usize,
    sampled: usize,
    slot: Option<usize>,
    ended: bool,
}

/// Serves requests that arrive once in `pause` steps on average.
fn simulate(random: &mut Random, limits: Limits, requests: usize, pause: usize) {
    let mut s = Scheduler::new(limits);
    let mut clients: Vec<Client> = Vec::new();
    let mut live: Vec<usize> = Vec::new();
    let mut pieces = Vec::new();
    let (mut pressed, mut tokens, mut samples, mut last_started) = (0, 0, 0, None);
    while clients.len() < requests || !s.is_idle() {
        while clients.len() < requests && random.once_in(pause) {
            let (prompt, output) = (1 + random.below(4096), 1 + random.below(256));
            if s.submit(RequestId(clients.len() as u64), prompt).is_err() {
                assert_eq!(live.len(), limits.slots + limits.queue);
                break;
            }
            let restart = if random.once_in(10) { 1 + random.below(256) } else { usize::MAX };
            let patience = if random.once_in(10) { random.below(2000) } else { usize::MAX };
            live.push(clients.len());
            let new =
                Client { output, restart, patience, prompt, pending: prompt, sampled: 0, slot: None, ended: false };
            clients.push(new);
        }
        for &i in &live {
            let client = &mut clients[i];
            client.patience = client.patience.saturating_sub(1);
            if client.patience == 0 {
                assert_eq!(s.cancel(RequestId(i as u64)), client.slot);
                client.ended = true;
            }
        }
        live.retain(|&i| !clients[i].ended);

        s.schedule(&mut pieces);
        let total: usize = pieces.iter().map(|p| p.tokens).sum();
        assert!(total <= limits.step_tokens && pieces.len() <= limits.slots);
        // Nothing starves: whoever runs has a piece in every step.
        let continued = pieces.iter().filter(|p| clients[p.request.0 as usize].slot.is_some()).count();
        assert_eq!(continued, s.running());
        // Nobody waits in vain.
        let waits = s.waiting() > pieces.len() - continued;
        assert!(!waits || total == limits.step_tokens || pieces.len() == limits.slots);
        if random.once_in(20) {
            continue; // The step failed.
        }
        (pressed, tokens) = (pressed + usize::from(waits), tokens + total);
        for &piece in &pieces {
            let i = piece.request.0 as usize;
            let client = &mut clients[i];
            assert!(
                !client.ended && piece.tokens <= client.pending && client.slot.is_none_or(|slot| slot == piece.slot)
            );
            assert_eq!(piece.samples, piece.tokens == client.pending);
            if client.slot.is_none() {
                assert!(Some(i) > last_started, "served out of turn");
                last_started = Some(i);
            }
            s.ran(piece);
            client.slot = Some(piece.slot);
            client.pending -= piece.tokens;
            if client.pending > 0 {
                continue;
            }
            (client.pending, client.sampled, samples) = (1, client.sampled + 1, samples + 1);
            if client.sampled == client.output {
                assert_eq!(s.finish(piece.request), piece.slot);
                client.ended = true;
            } else if client.sampled == client.restart {
                client.pending = client.prompt + client.sampled;
                s.restart(piece.request, client.pending);
            }
        }
        live.retain(|&i| !clients[i].ended);
    }
    assert!(s.free_slots() == limits.slots && live.is_empty() && clients.iter().all(|c| c.ended));
    // A step that leaves somebody waiting is full of tokens, or samples for every slot. No order of service needs fewer than the
    // larger of the two terms.
    assert!(pressed <= tokens / limits.step_tokens + samples / limits.slots, "{pressed} steps, {limits:?}");
}

#[test]
fn ten_thousand_requests_are_served_in_order() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(0));
    for round in 0..40 {
        let slots = 1 + random.below(32);
        let limits = Limits::new(slots, slots + random.below(2048), random.below(64)).unwrap();
        simulate(&mut random, limits, 250, [1, 2, 30, 200][round % 4]);
    }
}
