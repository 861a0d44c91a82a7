//! Adam with decoupled weight decay (arXiv 1711.05101).

/// Largest step size.
const LEARNING_RATE: f64 = 1e-3;
/// Share of the steps over which the step size rises to it; over the rest it falls to 0.
const WARM_UP: f64 = 0.05;
const WEIGHT_DECAY: f64 = 0.01;
const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// Parameters and the moments of their gradients.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AdamW {
    pub parameters: Vec<f32>,
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
    pub steps: usize,
}

impl AdamW {
    pub fn new(parameters: Vec<f32>) -> Self {
        let zeros = vec![0.0; parameters.len()];
        AdamW { parameters, mean: zeros.clone(), square: zeros, steps: 0 }
    }

    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// One step of `all`.
    pub fn step(&mut self, gradient: &[f32], all: usize) {
        let warm_up = (all as f64 * WARM_UP).max(1.0);
        let at = self.steps as f64;
        let rate = LEARNING_RATE
            * ((at + 1.0) / warm_up).min((all as f64 - at) / (all as f64 - warm_up).max(1.0)).clamp(0.0, 1.0);
        self.steps += 1;
        let unbias = |beta: f32| 1.0 - f64::from(beta).powi(self.steps as i32);
        let (first, second) = ((1.0 / unbias(BETA_1)) as f32, (1.0 / unbias(BETA_2)) as f32);
        let (rate, keep) = (rate as f32, (1.0 - rate * WEIGHT_DECAY) as f32);
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((parameter, (mean, square)), &g) in self.parameters.iter_mut().zip(moments).zip(gradient) {
            *mean = BETA_1 * *mean + (1.0 - BETA_1) * g;
            *square = BETA_2 * *square + (1.0 - BETA_2) * g * g;
            *parameter = *parameter * keep - rate * (*mean * first) / ((*square * second).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_minimum_of_a_badly_scaled_parabola() {
        let target = [0.3f32, -0.2, 0.1];
        let scale = [1e-4f32, 1.0, 1e3];
        let mut adamw = AdamW::new(vec![0.0; 3]);
        for _ in 0..3000 {
            let at = adamw.parameters().to_vec();
            let gradient: Vec<f32> = (0..3).map(|i| scale[i] * (at[i] - target[i])).collect();
            adamw.step(&gradient, 3000);
        }
        let near = |(found, want): (&f32, &f32)| (found - want).abs() < 0.01;
        assert!(adamw.parameters().iter().zip(&target).all(near), "{:?}", adamw.parameters());
    }
}
