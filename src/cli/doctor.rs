//! `hubrouter doctor`

use std::process::ExitCode;

use clap::Args;

use serde::Serialize;

use super::installed::Installed;
use super::progress::Progress;
use super::{StoreArgs, bundled, output};
use crate::diagnostics::{Diagnosis, KeptTuning, diagnose, kept, tune};
use crate::error::{Result, bail};
use crate::options::Options;

/// Show the installed store and encoder, the devices and the choice of --device; test every op on
/// each device
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter doctor
  hubrouter doctor --json | jq .self_test
  hubrouter doctor --tune --device gpu

Exit code 1: the store or its encoder is damaged, or an op fails its test on a device.")]
pub(super) struct DoctorArgs {
    /// The --device to explain
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Measure the GPU that --device takes, and keep in the cache folder ($HUBROUTER_CACHE) which of
    /// its kernels is the faster for how many tokens, and which batches the CPU computes sooner; test
    /// nothing
    #[arg(long)]
    tune: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Folder of the encoder bundle [default: inside or beside the store, or the bundled one]
    #[arg(long, value_name = "FOLDER")]
    encoder: Option<std::path::PathBuf>,
}

#[derive(Serialize)]
struct DoctorReport {
    #[serde(flatten)]
    diagnosis: Diagnosis,
    installed: Installed,
    /// What `--tune` has kept.
    kept: Vec<KeptTuning>,
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    if args.tune {
        return measure(args);
    }
    let installed = Installed::look(args.store.path(), args.encoder.clone());
    if !args.json {
        // Printed first, because the devices take a while.
        installed.print()?;
    }
    let diagnosis = diagnose(&args.device.as_str().into(), super::cpu_level()?)?;
    let kept =
        bundled::cache_folder().map_or_else(Vec::new, |folder| kept(&diagnosis.adapters, &folder));
    if !args.json {
        print(&diagnosis)?;
        kept.iter().try_for_each(print_kept)?;
    }
    let healthy = diagnosis.self_test.iter().all(|test| test.ok)
        && diagnosis.failures.is_empty()
        && !installed.is_damaged();
    if args.json {
        output::json(&DoctorReport {
            diagnosis,
            installed,
            kept,
        })?
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `--tune`
fn measure(args: &DoctorArgs) -> Result<ExitCode> {
    let Some(folder) = bundled::cache_folder() else {
        bail!(
            InvalidRequest,
            "--tune: expected a cache folder, found HUBROUTER_CACHE=off; set it to a folder"
        );
    };
    let mut options = Options::default().cpu(super::cpu_level()?);
    options.encoder.clone_from(&args.encoder);
    options.look_in.extend(bundled::encoder());
    let (choice, store) = (args.device.as_str().into(), args.store.path()?);
    let mut bar = Progress::new("measuring", 0);
    let report = tune(&choice, &store, &options, &folder, &mut |done, total| {
        bar.total(total as u64);
        bar.set(done as u64);
    })?;
    drop(bar);
    if args.json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::paragraph(format!("{} ({})", report.adapter, report.driver))?;
    let mut table = output::TextTable::new(&[">tokens", ">skinny us", ">tiled us", ">matrix us"]);
    for m in &report.measured {
        table.row(vec![
            m.rows.to_string(),
            format!("{:.0}", m.skinny_us),
            format!("{:.0}", m.tiled_us),
            m.matrix_us.map_or("-".to_owned(), |us| format!("{us:.0}")),
        ]);
    }
    table.print()?;
    output::paragraph(format!(
        "from now on batches {}",
        of_few_rows(report.few_rows)
    ))?;
    output::paragraph(match (report.matrix_rows, &report.matrix_fault) {
        (Some(rows), _) => format!("batches {}", of_matrices(rows)),
        (None, None) => "matrix units are right, and not faster".to_owned(),
        (None, Some(fault)) => format!("matrix units are not taken: {fault}"),
    })?;
    let mut table = output::TextTable::new(&[">tokens", ">CPU ms", ">GPU ms", ">ratio"]);
    for m in &report.routes {
        table.row(vec![
            m.tokens.to_string(),
            format!("{:.2}", m.cpu_us / 1e3),
            format!("{:.2}", m.gpu_us / 1e3),
            format!("{:.2}", m.cpu_us / m.gpu_us),
        ]);
    }
    table.print()?;
    output::paragraph(format!(
        "and --device auto gives {}: {}",
        share(report.cpu_tokens, report.threads),
        report.kept.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn of_few_rows(rows: usize) -> String {
    format!("of up to {rows} tokens take the kernel for few rows")
}

fn of_matrices(rows: usize) -> String {
    format!("of {rows} tokens and more take matrix units")
}

/// What --device auto gives to which device.
fn share(cpu_tokens: usize, threads: usize) -> String {
    match cpu_tokens {
        0 => "all batches to the GPU".to_owned(),
        tokens => {
            format!("batches of up to {tokens} tokens to the CPU, where it has {threads} threads")
        }
    }
}

fn print_kept(kept: &KeptTuning) -> Result<()> {
    let KeptTuning {
        adapter, driver, ..
    } = kept;
    if let Some(fault) = &kept.fault {
        return output::paragraph(format!("{adapter}: what --tune kept is not taken: {fault}"));
    }
    let few = kept.few_rows.map_or_else(String::new, of_few_rows);
    let mut text = format!("{adapter} ({driver}), as --tune measured it: batches {few}");
    if let Some(rows) = kept.matrix_rows {
        text += &format!(", {}", of_matrices(rows));
    }
    if let (Some(tokens), Some(threads)) = (kept.cpu_tokens, kept.threads) {
        text += &format!("; --device auto gives {}", share(tokens, threads));
    }
    output::paragraph(text)
}

fn print(diagnosis: &Diagnosis) -> Result<()> {
    let cpu = &diagnosis.cpu;
    output::paragraph(format!(
        "CPU: {} threads, kernels of the level {} (HUBROUTER_CPU) for {}, in int8 {} ({}), in bf16 \
         {} ({}), features {}",
        cpu.threads,
        cpu.level,
        cpu.kernels,
        cpu.int8.as_deref().unwrap_or("none"),
        cpu.int8_reason,
        cpu.bf16.as_deref().unwrap_or("none"),
        cpu.bf16_reason,
        cpu.features.join(" ")
    ))?;
    if diagnosis.adapters.is_empty() {
        output::line("no adapters")?;
    }
    for adapter in &diagnosis.adapters {
        let limits = &adapter.limits;
        output::paragraph(format!(
            "{} ({}, {})",
            adapter.name, adapter.kind, adapter.backend
        ))?;
        output::paragraph(format!("  driver    {}", adapter.driver))?;
        output::paragraph(format!("  features  {}", adapter.features.join(" ")))?;
        output::paragraph(format!(
            "  limits    binding {} MiB, buffer {} MiB, {} lanes, {} bytes of workgroup \
             memory, subgroups of {} to {}",
            limits.max_storage_buffer_binding_size >> 20,
            limits.max_buffer_size >> 20,
            limits.max_compute_invocations_per_workgroup,
            limits.max_compute_workgroup_storage_size,
            limits.subgroup_size[0],
            limits.subgroup_size[1],
        ))?;
    }
    output::paragraph(format!(
        "--device {} takes {}: {}",
        diagnosis.asked, diagnosis.chosen, diagnosis.reason
    ))?;
    let mut table = output::TextTable::new(&["op", "device", ">max abs error", ">bound", "result"]);
    for test in &diagnosis.self_test {
        table.row(vec![
            test.op.to_owned(),
            test.device.clone(),
            format!("{:.1e}", test.max_abs_error),
            format!("{:.0e}", test.bound),
            if test.ok { "ok" } else { "FAILED" }.into(),
        ]);
    }
    table.print()?;
    for failure in &diagnosis.failures {
        output::paragraph(format!("not tested: {failure}"))?;
    }
    output::paragraph(format!("self-test: {:.1} s", diagnosis.seconds))
}
