//! The signatures that are kept with a reference.

use crate::oci::{Digest, Reference};
use crate::signature::Signature;
use crate::store::{Store, StoreError, StoredReference};

impl Store {
    /// Records by which signatures `reference` is trusted, if it still leads to `top`.
    pub fn put_signatures(
        &self,
        reference: &Reference,
        top: &Digest,
        signatures: &[Signature],
    ) -> Result<(), StoreError> {
        let needs =
            |record: &StoredReference| record.top.digest == *top && record.signatures != signatures;
        // Mostly they are there.
        if !self
            .reference(reference)?
            .is_some_and(|record| needs(&record))
        {
            return Ok(());
        }
        let _lock = self.lock_references()?;
        if let Some(record) = self.reference(reference)?.filter(needs) {
            let signatures = signatures.to_vec();
            let record = StoredReference {
                signatures,
                ..record
            };
            self.write_record(&self.named_reference_path(&reference.to_string()), &record)?;
            // Nothing else in it, but as new as the references.
            self.export()?;
        }
        Ok(())
    }
}
