//! Records that stand beside a generation's manifest and are no part of it: each names its
//! generation and encoder, and has its own hash.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, bail};
use crate::files;
use crate::generation::GenerationId;

/// The form of a record's file.
pub(super) trait Beside: Serialize + DeserializeOwned {
    /// The file's name.
    const NAME: &str;
    const KIND: &str;
    /// Most bytes of the file.
    const LIMIT: u64;

    /// The generation, and SHA-256 of the encoder's manifest.
    fn belongs_to(&self) -> (&GenerationId, &str);

    /// SHA-256 of the file with an empty text here.
    fn sha256(&mut self) -> &mut String;

    fn digest(&mut self) -> Result<String> {
        self.sha256().clear();
        Ok(files::sha256(&files::to_json(self)?))
    }

    /// The file's bytes.
    fn sealed(mut self) -> Result<Vec<u8>> {
        let digest = self.digest()?;
        *self.sha256() = digest;
        files::to_json(&self)
    }

    /// The record in `folder`, which is generation `id` with the encoder `encoder`; `None`: there is
    /// none.
    ///
    /// Errors: the file is damaged, or belongs to another generation or encoder.
    fn read(folder: &Path, id: &GenerationId, encoder: &str) -> Result<Option<Self>> {
        let path = folder.join(Self::NAME);
        let bytes = match files::read_bytes(&path, Self::LIMIT) {
            Err(error) if error.is_missing() => return Ok(None),
            other => other?,
        };
        let mut file: Self = files::parse_form(&path, &bytes, Self::KIND)?;
        let place = path.display();
        let (generation, of) = file.belongs_to();
        if generation != id || of != encoder {
            bail!(
                Mismatch,
                "{place}: expected a record of {id} and encoder {}, found {generation} and {}",
                files::short(encoder),
                files::short(of)
            );
        }
        let found = file.sha256().clone();
        let want = file.digest()?;
        if found != want {
            bail!(
                Mismatch,
                "{place}: sha256: expected {want} of the content, found {found}"
            );
        }
        Ok(Some(file))
    }
}
