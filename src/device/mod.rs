//! Devices: a GPU through wgpu, or this machine's CPU. Two variants, one `match` per op.

pub(crate) mod adapter;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
#[cfg(not(feature = "gpu"))]
#[path = "no_gpu.rs"]
pub(crate) mod gpu;
#[cfg(feature = "cli")]
pub(crate) mod noted;
mod pass;
mod plan;
mod tensor;
#[cfg(any(feature = "gpu", feature = "cli"))]
pub(crate) mod tuning;
mod variant;

use std::path::Path;
use std::sync::Arc;

pub use cpu::CpuLevel;
pub(crate) use gpu::{Kernel, Shader, shader};
pub(crate) use pass::{Counts, CpuPass, Outputs, Pass, Read};
pub(crate) use plan::{HeldPlan, Plan, Plans, Sizes};
pub(crate) use tensor::{NewTensor, Part, PartMut, Place, Tensor};
pub use variant::DeviceVariant;

use crate::error::{Error, ErrorKind, Result, bail};
use crate::num::to_u32;
use adapter::AdapterReport;
use cpu::Cpu;
use gpu::Gpu;

/// Which device a host asks for.
///
/// From a text: `auto` (or nothing), `cpu`, `gpu`, or else part of an adapter's name. So a misspelt
/// `gpuu` is the name of an adapter that nobody has: opening it is an error of the kind
/// [`ErrorKind::NoAdapter`], whose text lists the adapters that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum DeviceChoice {
    /// A hardware GPU if there is one, else the CPU; beside a GPU that `hubrouter doctor --tune` has
    /// measured the CPU for calls that it computes sooner. Never a software adapter: one was
    /// measured 20 to 150 times slower than the native path on the same cores.
    #[default]
    Auto,
    /// The native path on this machine's CPU.
    Cpu,
    /// A hardware GPU, or an error.
    Gpu,
    /// The first adapter whose name or driver contains this text, in any case; also a software one.
    Named(String),
}

impl From<&str> for DeviceChoice {
    fn from(text: &str) -> Self {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            _ => Self::Named(text.trim().to_owned()),
        }
    }
}

impl From<String> for DeviceChoice {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Auto => "auto".into(),
            DeviceChoice::Cpu => "cpu".into(),
            DeviceChoice::Gpu => "gpu".into(),
            DeviceChoice::Named(name) => name,
        }
    }
}

/// An open device; clones share it.
#[derive(Clone)]
pub(crate) enum Device {
    Gpu(Arc<Gpu>),
    Cpu(Arc<Cpu>),
}

/// The batches that the CPU computes sooner than a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CpuShare {
    /// Threads that it was measured with.
    pub(crate) threads: usize,
    /// Most tokens of such a batch; 0: the GPU is always the faster.
    pub(crate) tokens: usize,
}

/// Matrix units that multiply f16 and sum in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    /// Rows and columns of a matrix: 8 or 16.
    pub(crate) side: usize,
    /// Lanes of four subgroups, each of which has a matrix.
    pub(crate) lanes: usize,
}

/// What was opened and why.
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// For people: why this device.
    pub(crate) reason: String,
    /// What failed, where the CPU computes in place of another device.
    pub(crate) degraded: Option<String>,
    /// Most tokens of a batch that the CPU computes in place of the GPU; 0: none.
    pub(crate) cpu_tokens: usize,
}

impl Opened {
    fn new(device: Device, reason: String) -> Self {
        Self {
            device,
            reason,
            degraded: None,
            cpu_tokens: 0,
        }
    }

    /// The CPU beside a GPU, for the batches that it computes sooner.
    pub(crate) fn beside_gpu(cpu: &Arc<Cpu>) -> Self {
        let reason = "the CPU computes some batches sooner than the GPU";
        Self::new(Device::Cpu(Arc::clone(cpu)), reason.into())
    }

    /// The CPU, in place of a device that failed with `error`.
    pub(crate) fn stepped_down(cpu: &Arc<Cpu>, error: &Error) -> Self {
        let reason = format!("stepped down to the CPU: {error}");
        let degraded = Some(error.to_string());
        Self {
            degraded,
            ..Self::new(Device::Cpu(Arc::clone(cpu)), reason)
        }
    }
}

impl DeviceChoice {
    /// The same choice where it names a device; for `auto` the one that it is on this machine.
    #[cfg(feature = "cmrbench")]
    pub(crate) fn resolved(&self) -> Result<Self> {
        if *self != Self::Auto {
            return Ok(self.clone());
        }
        let (adapter, _) = choose(self, gpu::adapters)?;
        Ok(adapter.map_or(Self::Cpu, |adapter| Self::from(&*adapter.report().name)))
    }
}

impl Device {
    /// Opens what `choice` asks for; `cpu` is the host's own, `cache` a folder that keeps a GPU's
    /// kernels; `variant`: that its products are to take.
    ///
    /// Errors: no adapter fits; its driver or its limits refuse. They are of the kinds that a step down
    /// to the CPU cures ([`ErrorKind::is_device`]).
    pub(crate) fn open(
        choice: &DeviceChoice,
        cpu: &Arc<Cpu>,
        cache: Option<&Path>,
        variant: DeviceVariant,
    ) -> Result<Opened> {
        let (adapter, reason) = choose(choice, gpu::adapters)?;
        let device = match adapter {
            Some(adapter) => Self::Gpu(Arc::new(Gpu::open(&adapter, cpu, cache, variant)?)),
            None => Self::Cpu(Arc::clone(cpu)),
        };
        let mut opened = Opened::new(device, reason);
        if let (DeviceChoice::Auto, Self::Gpu(gpu)) = (choice, &opened.device) {
            let (tokens, why) = cpu_tokens(gpu.cpu_share(), cpu.threads());
            opened.cpu_tokens = tokens;
            opened.reason = format!("{}; {why}", opened.reason);
        }
        Ok(opened)
    }

    /// As in a decision: `cpu`, or the adapter's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Gpu(gpu) => gpu.name(),
        }
    }

    /// Whether a hardware GPU computes.
    pub(crate) fn is_hardware_gpu(&self) -> bool {
        matches!(self, Self::Gpu(gpu) if gpu.is_hardware())
    }

    /// A tensor to be written by ops, room for `rows` of `columns`. In tests it holds NaN first.
    pub(crate) fn scratch(
        &self,
        label: &'static str,
        rows: usize,
        columns: usize,
    ) -> Result<Tensor> {
        Tensor::scratch(self, label, rows, columns)
    }

    /// A tensor for ids, room for `rows` of `columns`.
    pub(crate) fn ids(&self, label: &'static str, rows: usize, columns: usize) -> Result<Tensor> {
        Tensor::ids(self, label, rows, columns)
    }

    /// A tensor that holds `values`, rows of `columns`.
    pub(crate) fn upload(
        &self,
        label: &'static str,
        columns: usize,
        values: &[f32],
    ) -> Result<Tensor> {
        Tensor::upload(self, label, columns, values)
    }

    /// A tensor that holds `values`, rows of `columns`.
    pub(crate) fn upload_ids(
        &self,
        label: &'static str,
        columns: usize,
        values: &[u32],
    ) -> Result<Tensor> {
        Tensor::upload(self, label, columns, values)
    }

    /// A tensor that passes upload and kernels only read; every pass that uses it uploads it. On a
    /// GPU it comes with the pass's one copy.
    pub(crate) fn input(&self, wanted: NewTensor) -> Tensor {
        Tensor::input(self, wanted)
    }

    /// Tensors to be written by ops, which a GPU's pass reads back in one copy.
    pub(crate) fn beside<const N: usize>(&self, wanted: [NewTensor; N]) -> Result<[Tensor; N]> {
        Tensor::beside(self, wanted)
    }

    /// Compiles `kernels` side by side on the threads of the host; nothing on the CPU.
    pub(crate) fn compile(&self, kernels: &[&Kernel]) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Gpu(gpu) => gpu.compile(kernels),
        }
    }

    /// Runs `body`, which calls ops on `plan`'s tensors, and hands back what it read.
    ///
    /// The CPU computes inside the calls; the GPU records them and submits once.
    pub(crate) fn run<T: Send, R: Send>(
        &self,
        plan: &mut Plan<T>,
        body: impl FnOnce(&mut Pass<'_>, &mut T) -> R + Send,
    ) -> Result<(R, Outputs)> {
        let (value, running) = self.start(plan, body)?;
        Ok((value, self.finish(plan, running)?))
    }

    /// As [`Device::run`], without waiting for a GPU: the plan is busy until [`Device::finish`].
    pub(crate) fn start<T: Send, R: Send>(
        &self,
        plan: &mut Plan<T>,
        body: impl FnOnce(&mut Pass<'_>, &mut T) -> R + Send,
    ) -> Result<(R, Running)> {
        match self {
            Self::Cpu(cpu) => Ok(cpu.run(|| {
                let mut pass = Pass::Cpu(CpuPass::new(cpu));
                let value = body(&mut pass, &mut plan.tensors);
                (value, Running::Done(pass.into_outputs()))
            })),
            Self::Gpu(gpu) => {
                let (tensors, tape) = plan.split();
                let mut pass = Pass::Gpu(gpu::GpuPass::begin(gpu, tape)?);
                let value = body(&mut pass, tensors);
                match pass {
                    Pass::Gpu(pass) => Ok((value, Running::Submitted(pass.submit()?))),
                    Pass::Cpu(_) => unreachable!("a GPU's pass stays one"),
                }
            }
        }
    }

    /// Waits for what [`Device::start`] began on `plan`, and hands back what it read.
    pub(crate) fn finish<T>(&self, plan: &mut Plan<T>, running: Running) -> Result<Outputs> {
        match (self, running) {
            (_, Running::Done(outputs)) => Ok(outputs),
            (Self::Gpu(gpu), Running::Submitted(ticket)) => ticket.wait(gpu, plan.split().1),
            (Self::Cpu(_), Running::Submitted(_)) => unreachable!("the CPU submits nothing"),
        }
    }
}

/// A batch that a device computes.
pub(crate) enum Running {
    Done(Outputs),
    Submitted(gpu::Ticket),
}

/// Most tokens of a batch that `auto` leaves to the CPU, and why.
fn cpu_tokens(share: Option<CpuShare>, threads: usize) -> (usize, String) {
    let Some(share) = share else {
        let why = "whether the CPU computes small batches sooner was not measured; \
                   `hubrouter doctor --tune` does that";
        return (0, why.into());
    };
    match share.tokens {
        _ if share.threads != threads => {
            let measured = share.threads;
            let why = format!(
                "the CPU was measured beside it with {measured} threads and has {threads} now"
            );
            (0, why)
        }
        0 => (0, "it computes all batches sooner than the CPU".into()),
        tokens => {
            let why = format!("the CPU computes batches of up to {tokens} tokens sooner");
            (tokens, why)
        }
    }
}

/// Why `auto` takes the CPU without asking any driver.
const NO_NODE: &str = "no hardware GPU: the system has no device file of one";

const ASKED_FOR_CPU: &str = "the CPU was asked for";

/// Workgroups that cover `items` in groups of `size`.
pub(crate) fn groups(items: usize, size: usize) -> u32 {
    to_u32(items.div_ceil(size))
}

/// As [`choose`], where the feature `gpu` is off.
fn choose_without_gpu(choice: &DeviceChoice) -> Result<String> {
    match choice {
        DeviceChoice::Cpu => Ok(ASKED_FOR_CPU.into()),
        DeviceChoice::Auto => Ok("this build has no GPU support (feature `gpu`)".into()),
        DeviceChoice::Gpu | DeviceChoice::Named(_) => bail!(
            NoAdapter,
            "device {}: expected auto or cpu, because hubrouter was built without the feature `gpu`; \
             use --device cpu, or build with --features gpu",
            String::from(choice.clone())
        ),
    }
}

/// The adapter that `choice` means on this machine, or None for the CPU; and why. `adapters` are
/// looked for only where one may be meant: a driver takes tens of milliseconds to start, and a
/// server without a GPU is common.
pub(crate) fn choose(
    choice: &DeviceChoice,
    adapters: impl FnOnce() -> Vec<gpu::GpuAdapter>,
) -> Result<(Option<gpu::GpuAdapter>, String)> {
    if cfg!(not(feature = "gpu")) {
        return Ok((None, choose_without_gpu(choice)?));
    }
    if *choice == DeviceChoice::Auto && !gpu::may_be_hardware() {
        return Ok((None, NO_NODE.into()));
    }
    let mut adapters = match choice {
        DeviceChoice::Cpu => Vec::new(),
        _ => adapters(),
    };
    let reports: Vec<AdapterReport> = adapters.iter().map(gpu::GpuAdapter::report).collect();
    let (index, reason) = pick(choice, &reports)?;
    Ok((index.map(|index| adapters.swap_remove(index)), reason))
}

/// The adapter among these that `choice` means, or None for the CPU; and why.
fn pick(choice: &DeviceChoice, adapters: &[AdapterReport]) -> Result<(Option<usize>, String)> {
    let list = || match adapters {
        [] => "no adapter at all".to_owned(),
        some => some
            .iter()
            .map(|a| format!("{} ({})", a.name, a.kind))
            .collect::<Vec<_>>()
            .join(", "),
    };
    // Discrete before integrated before virtual; the driver's order among equals.
    let hardware = (0..adapters.len())
        .filter(|&i| adapters[i].hardware)
        .min_by_key(|&i| match adapters[i].kind {
            "discrete GPU" => 0,
            "integrated GPU" => 1,
            _ => 2,
        });
    match choice {
        DeviceChoice::Cpu => Ok((None, ASKED_FOR_CPU.into())),
        DeviceChoice::Auto => Ok(match hardware {
            Some(index) => (
                Some(index),
                format!("{} is a hardware GPU", adapters[index].name),
            ),
            None => (
                None,
                format!(
                    "no hardware GPU (found {}); software adapters are used only by name",
                    list()
                ),
            ),
        }),
        DeviceChoice::Gpu => match hardware {
            Some(index) => Ok((Some(index), "a hardware GPU was asked for".into())),
            None => Err(Error::new(
                ErrorKind::NoAdapter,
                format!(
                    "device gpu: expected a hardware GPU, found {}; use --device cpu, or name an adapter",
                    list()
                ),
            )),
        },
        DeviceChoice::Named(name) => {
            let wanted = name.to_lowercase();
            let found = adapters.iter().position(|adapter| {
                adapter.name.to_lowercase().contains(&wanted)
                    || adapter.driver.to_lowercase().contains(&wanted)
            });
            match found {
                Some(index) => Ok((
                    Some(index),
                    format!("{} was asked for by name", adapters[index].name),
                )),
                None => Err(Error::new(
                    ErrorKind::NoAdapter,
                    format!(
                        "device {name:?}: expected auto, cpu, gpu or part of an adapter's name, found {}",
                        list()
                    ),
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn adapter(name: &str, kind: &'static str) -> AdapterReport {
        let hardware = kind != "software";
        AdapterReport {
            name: name.into(),
            driver: "Mesa 25".into(),
            kind,
            hardware,
            ..AdapterReport::default()
        }
    }

    #[test]
    fn auto_takes_hardware_and_never_software() {
        let software = adapter("llvmpipe (LLVM 15)", "software");
        let small = adapter("UHD 770", "integrated GPU");
        let large = adapter("NVIDIA H200", "discrete GPU");
        let auto = |list: &[AdapterReport]| pick(&DeviceChoice::Auto, list).unwrap().0;
        assert_eq!(auto(&[]), None);
        assert_eq!(auto(std::slice::from_ref(&software)), None);
        assert_eq!(auto(&[software.clone(), small.clone()]), Some(1));
        assert_eq!(auto(&[software.clone(), small.clone(), large]), Some(2));

        let error = pick(&DeviceChoice::Gpu, std::slice::from_ref(&software))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::NoAdapter);
        assert!(error.to_string().contains("llvmpipe"), "{error}");
        assert_eq!(
            pick(&"LLVMpipe".into(), &[small.clone(), software])
                .unwrap()
                .0,
            Some(1)
        );
        assert_eq!(pick(&"mesa".into(), &[small]).unwrap().0, Some(0));
        assert_eq!(
            pick(&"voodoo".into(), &[]).err().unwrap().kind(),
            ErrorKind::NoAdapter
        );
    }

    #[test]
    fn a_build_without_gpus_says_so() {
        let choose = choose_without_gpu;
        assert!(
            choose(&DeviceChoice::Auto)
                .unwrap()
                .contains("feature `gpu`")
        );
        assert_eq!(choose(&DeviceChoice::Cpu).unwrap(), ASKED_FOR_CPU);
        for text in ["gpu", "llvmpipe"] {
            let error = choose(&text.into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoAdapter);
            let error = error.to_string();
            let begin = format!("device {text}: expected auto or cpu");
            assert!(
                error.starts_with(&begin) && error.contains("--features gpu"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_cpu_has_the_batches_that_were_measured_with_its_threads() {
        let share = |tokens| CpuShare { threads: 4, tokens };
        for (share, threads, tokens, why) in [
            (None, 4, 0, "not measured"),
            (Some(share(64)), 4, 64, "up to 64 tokens"),
            (Some(share(64)), 2, 0, "with 4 threads and has 2"),
            (Some(share(0)), 4, 0, "all batches sooner"),
        ] {
            let found = cpu_tokens(share, threads);
            assert_eq!(found.0, tokens);
            assert!(found.1.contains(why), "{}", found.1);
        }
    }

    #[test]
    fn choices_survive_their_text() {
        for text in ["auto", "cpu", "gpu", "llvmpipe"] {
            assert_eq!(String::from(DeviceChoice::from(text)), text);
        }
    }
}
