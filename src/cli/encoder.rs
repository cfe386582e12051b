//! `hubrouter encoder`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output;
use crate::error::Result;
use crate::{ImportOptions, import_encoder};

#[derive(Subcommand)]
pub(super) enum EncoderCommand {
    /// Turn a Hugging Face folder into an encoder bundle
    #[command(after_help = "Example:
  hubrouter encoder import --from ~/all-MiniLM-L6-v2 --to weights/all-MiniLM-L6-v2 --dtype f16

Reads config.json, tokenizer.json and model.safetensors (or its shards), and the \
sentence-transformers files 1_Pooling, modules.json and prompts if they exist. Supports BERT, \
RoBERTa and XLM-RoBERTa encoders such as MiniLM, BGE, E5 and GTE.")]
    Import(ImportArgs),
}

#[derive(Args)]
pub(super) struct ImportArgs {
    /// Hugging Face folder
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
    /// Folder of the new bundle; it must not exist
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// f32, f16 or bf16 [default: as in the checkpoint]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Name of the encoder [default: the new folder's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// mean or cls [default: as in the checkpoint]
    #[arg(long, value_name = "POOLING")]
    pooling: Option<String>,
    /// Most tokens of a prompt [default: the smallest limit in the checkpoint]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Text before each prompt, as E5 needs it [default: as in the checkpoint]
    #[arg(long, value_name = "TEXT")]
    query_prefix: Option<String>,
    /// Text before each model card [default: as in the checkpoint]
    #[arg(long, value_name = "TEXT")]
    document_prefix: Option<String>,
    /// Licence of the weights [default: as in README.md]
    #[arg(long, value_name = "LICENCE")]
    licence: Option<String>,
    /// Origin of the checkpoint [default: the folder's name]
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &EncoderCommand) -> Result<ExitCode> {
    let EncoderCommand::Import(args) = command;
    let options = ImportOptions {
        name: args.name.clone(),
        dtype: args.dtype.clone(),
        pooling: args.pooling.clone(),
        max_tokens: args.max_tokens,
        query_prefix: args.query_prefix.clone(),
        document_prefix: args.document_prefix.clone(),
        licence: args.licence.clone(),
        source: args.source.clone(),
    };
    output::remark(format!("importing {}", args.from.display()));
    let imported = import_encoder(&args.from, &args.to, &options)?;
    let made = format!(
        "{}: {} layers of width {}, {} pooling, {} tokens, {} weights ({} bytes), licence {}",
        imported.folder.display(),
        imported.layers,
        imported.width,
        imported.pooling,
        imported.max_tokens,
        imported.dtype,
        imported.bytes,
        imported.licence
    );
    output::done(args.json, &imported, made);
    if !args.json {
        output::line(format!("revision {}", imported.revision))?;
        let mut notes = imported.notes.iter();
        notes.try_for_each(|note| output::line(format!("note: {note}")))?;
    }
    Ok(ExitCode::SUCCESS)
}
