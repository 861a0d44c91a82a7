//! What tuning writes for a setting that is rounded anew.

use sparrow::{DType, Load};
use sparrow_testing::*;
use sparrow_tools::tune::{Computed, Rounding, Setting, TuneOptions, Tuning};

#[test]
fn weights_rounded_by_gptq_are_written_as_they_were_measured() {
    let [narrow, mixed] = [Rounding::Gptq, Rounding::Mixed(55)].map(written);
    assert!(mixed < 0.8 * narrow, "{mixed} {narrow}");
}

/// The KL divergence of what was written, which has a head in eight bits.
fn written(rounding: Rounding) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options = TuneOptions { window: 32, bos: true, max_tokens: 1100 };
    let text = demo_dir().join("sample.txt");
    let mut tuning = Tuning::new(&demo_dir(), &out, &text, options, &cpu(), |_, _, _| ()).unwrap();
    let nearest = Setting { dtype: Some(DType::I4G32), rounding: Rounding::Nearest, computed: Computed::All };
    let gptq = Setting { rounding, ..nearest };
    let mixed = rounding.average_bits().is_some();
    let name = if mixed { "gptq int4 and int8, 5.5 bits" } else { "gptq int4" };
    assert_eq!((nearest.to_string(), gptq.to_string()), ("int4".into(), name.into()));
    tuning.round(rounding, |_, _, _| ()).unwrap();
    let [by_nearest, by_gptq] = [nearest, gptq].map(|setting| tuning.measure(setting, |_, _| ()).unwrap());
    assert!(0.0 < by_gptq.kl_mean && by_gptq.kl_mean < by_nearest.kl_mean, "{by_gptq:?} {by_nearest:?}");
    let file = tuning.finish(gptq, Vec::new(), |_, _| ()).unwrap();

    // The directory is complete, nothing is beside it, and it runs so without being told.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(std::fs::read_dir(&out).unwrap().all(|entry| entry.unwrap().path().is_file()));
    let loaded = Load::new(&out).cpu(cpu()).open(|_, _, _| ()).unwrap();
    let found = &loaded.model.sidecar.as_ref().unwrap().file;
    assert_eq!((found.dtype, &found.method), (Some(DType::I4G32), &None));
    let weights = &loaded.model.weights;
    assert_eq!(weights.dtypes(), if mixed { "int4+int8" } else { "int4" });
    assert!(weights.embedding.dtype().is_quantized());
    assert!(file.quality.evaluation.kl_mean < 2.0 * by_gptq.kl_mean, "{:?}", file.quality);
    by_gptq.kl_mean
}
