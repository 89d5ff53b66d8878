//! The names of references, for whoever types one.

use serde::Deserialize;

use crate::files;
use crate::store::Store;

impl Store {
    /// The names of all references, sorted; what can not be read is left out.
    #[must_use]
    pub fn reference_names(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Named {
            reference: String,
        }
        let directory = self.path("refs");
        let records = files::names(&directory).unwrap_or_default();
        let named = records
            .iter()
            .filter_map(|name| Self::read_record::<Named>(&directory.join(name)).ok()?);
        let mut names: Vec<String> = named.map(|named| named.reference).collect();
        names.sort();
        names
    }
}
