//! An encoder's network with maps of low precision.

#[cfg(feature = "cli")]
use crate::device::Plan;
use crate::device::cpu::low::LowKernel;
use crate::encoder::Encoder;
use crate::encoder::bundle::Bundle;
#[cfg(feature = "cli")]
use crate::encoder::sizes;
use crate::error::Result;
#[cfg(feature = "cli")]
use crate::model::activations::Activations;
use crate::model::lora::Factors;
use crate::model::low::LowBert;
#[cfg(feature = "cli")]
use crate::text::tokenizer::Tokens;

impl Encoder {
    /// The network with maps in the numbers of `kernel`; `factors`: an adapter that is added to the weights.
    ///
    /// Errors: a tensor is missing, has another shape or dtype, or is not finite.
    pub(crate) fn low(&self, kernel: LowKernel, factors: Option<&Factors>) -> Result<LowBert> {
        let Bundle {
            weights,
            config,
            manifest,
            ..
        } = &*self.bundle;
        weights.check_unchanged()?;
        let pooling = manifest.pooling;
        let pack = || LowBert::new(&self.host, kernel, config, pooling, weights, factors);
        let network = self.host.run(pack);
        weights.release();
        network
    }

    /// Pooled vectors [B, H] of one batch by `network`.
    #[cfg(feature = "cli")]
    pub(crate) fn embed_batch_low(&self, network: &LowBert, batch: &[Tokens]) -> Result<Vec<f32>> {
        let batch = self.pack(batch);
        let (device, config) = (self.device(), self.config());
        let a = Activations::new(device, self.ops(), config, sizes(&batch), &[])?;
        let mut plan = Plan::new(device, a, 0, 0)?;
        let (read, outputs) = self.device().run(&mut plan, |pass, a| {
            a.upload(pass, &batch);
            network.encode(self.ops(), pass, self.words(), a);
            pass.read(&a.pooled)
        })?;
        Ok(outputs.f32(read).to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use super::*;
    use crate::device::Plan;
    use crate::device::cpu::low::LowFormat;
    use crate::encoder::{ImportOptions, import_encoder, sizes};
    use crate::model::activations::Activations;
    use crate::num::cosine;
    use crate::options::Options;
    use crate::testing::Folder;
    use crate::text::tokenizer::Tokens;

    const MINILM: &str = "weights/all-MiniLM-L6-v2";

    const TEXTS: [&str; 7] = [
        "hi",
        "Find a model that tells whether a product review is positive or negative.",
        "\u{dc}bersetze \u{201e}Guten Morgen\u{201c} ins Japanische.",
        "Who is speaking in this recording?",
        "I need to caption photographs of birds for a field guide, in two languages, offline.",
        "Summarise it.",
        "Which of these two contracts has the longer notice period, and where does it say so?",
    ];

    fn open(folder: &Path, threads: usize) -> Encoder {
        let options = Options::default().device("cpu").threads(threads);
        Encoder::open(folder, &options).unwrap()
    }

    fn tokens(encoder: &Encoder, texts: &[&str]) -> Vec<Tokens> {
        let tokens = encoder.tokenize_prompts(texts).into_iter();
        tokens.map(Result::unwrap).collect()
    }

    /// Of each prompt its pooled vector, and its unit vectors of the first and the last layer.
    fn encode(encoder: &Encoder, kernel: LowKernel, prompts: &[Tokens]) -> Vec<Vec<f32>> {
        encode_in(None, encoder, kernel, prompts)
    }

    /// As one chunk of `parts` parts, if that is `Some`.
    fn encode_in(
        parts: Option<usize>,
        encoder: &Encoder,
        kernel: LowKernel,
        prompts: &[Tokens],
    ) -> Vec<Vec<f32>> {
        let network = encoder.low(kernel, None).unwrap();
        let (device, config) = (encoder.device(), encoder.config());
        let batch = encoder.pack(prompts);
        let (which, ops) = ([0, config.layers - 1], encoder.ops());
        let a = Activations::new(device, ops, config, sizes(&batch), &which).unwrap();
        let mut plan = Plan::new(device, a, 0, 0).unwrap();
        // Parts need helpers.
        encoder.host.forget_crowd();
        let run = device.run(&mut plan, |pass, a| {
            a.upload(pass, &batch);
            network.encode_in(parts, encoder.ops(), pass, encoder.words(), a);
            let units = a.layers.as_ref().map(|layers| pass.read(&layers.units));
            (pass.read(&a.pooled), units.unwrap())
        });
        let ((pooled, units), outcome) = run.unwrap();
        let (width, pooled) = (encoder.width(), outcome.f32(pooled));
        let units = outcome.f32(units).chunks_exact(2 * width);
        let both = pooled.chunks_exact(width).zip(units);
        both.map(|(pooled, units)| [pooled, units].concat())
            .collect()
    }

    /// Every kernel and number of threads, alone and in company: the same bits, in bf16 of one
    /// kernel; and near to f32.
    fn check(folder: &Path, format: LowFormat, count: usize, worst: f64) {
        let encoders = [1, 2, 4].map(|threads| open(folder, threads));
        let texts: Vec<&str> = TEXTS.iter().copied().cycle().take(count).collect();
        let prompts = tokens(&encoders[0], &texts);
        let full: Vec<Vec<f32>> = encoders[0]
            .embed(&texts)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let fastest = LowKernel::available(format)[0];
        let mut want = encode(&encoders[0], fastest, &prompts);
        for kernel in LowKernel::available(format) {
            let few = if kernel.is_slow() { 5 } else { count };
            if format == LowFormat::Bf16 {
                want = encode(&encoders[0], kernel, &prompts[..few]);
            }
            for encoder in &encoders {
                let got = encode(encoder, kernel, &prompts[..few]);
                assert!(
                    got == want[..few],
                    "{format}, {kernel}, {} threads",
                    encoder.host.threads()
                );
            }
            for (vector, got) in full.iter().zip(&want) {
                let cosine = cosine(vector, &got[..vector.len()]);
                assert!(cosine > worst, "{format}, {kernel}: {cosine}");
                assert!(*vector != got[..vector.len()], "f32 was computed");
            }
        }
        let want = encode(&encoders[0], fastest, &prompts);
        for (prompt, want) in prompts.chunks_exact(1).zip(&want).take(TEXTS.len()) {
            assert!(encode(&encoders[1], fastest, prompt)[0] == *want, "alone");
        }
        let most = encoders[2].low(fastest, None).unwrap().most_parts();
        for parts in 1..=most.min(4) {
            for count in [1, 2, 7] {
                let got = encode_in(Some(parts), &encoders[2], fastest, &prompts[..count]);
                assert!(got == want[..count], "{count} prompts in {parts} parts");
            }
        }
    }

    #[test]
    fn minilm_is_the_same_everywhere_and_near_to_f32() {
        check(Path::new(MINILM), LowFormat::Int8, 30, 0.995);
        check(Path::new(MINILM), LowFormat::Bf16, 30, 0.9999);
    }

    #[test]
    fn encoders_of_odd_widths_are_the_same_everywhere_and_near_to_f32() {
        for name in ["toy-bert", "toy-xlm-roberta"] {
            let own = Folder::new("low");
            let folder = own.join(name);
            let from = Path::new("tests/fixtures").join(name);
            import_encoder(from, &folder, &ImportOptions::default()).unwrap();
            check(&folder, LowFormat::Int8, 40, 0.99);
            check(&folder, LowFormat::Bf16, 40, 0.9998);
        }
    }

    #[test]
    fn a_prompt_longer_than_a_chunk_is_one_chunk() {
        let encoder = open(Path::new(MINILM), 2);
        let [short, mut long] = tokens(&encoder, &TEXTS[..2]).try_into().unwrap();
        long.ids = long.ids.iter().copied().cycle().take(250).collect();
        for kernel in
            [LowFormat::Int8, LowFormat::Bf16].map(|format| LowKernel::available(format)[0])
        {
            let prompts = [short.clone(), long.clone(), short.clone()];
            let [first, middle, last] = encode(&encoder, kernel, &prompts).try_into().unwrap();
            assert!(encode(&encoder, kernel, &prompts[1..2])[0] == middle);
            assert!(encode(&encoder, kernel, &prompts[..1])[0] == first);
            assert!(first == last);
            assert!(middle.iter().all(|value| value.is_finite()));
        }
    }
}
