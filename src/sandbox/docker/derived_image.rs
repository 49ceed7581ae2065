//! Images made from a kernel's image with more packages. The same content is built once.

use std::fmt::Write as _;

use bollard::Docker;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::engine::call;
use super::images::{self, BuildError, BuildOptions, Images, archive};
use crate::kernels::{KernelSpec, Status};

/// Holds a hash of everything that the image is made from.
const LABEL_CONTENT: &str = "cellkeep.content";
const PACKAGES: &str = "packages.txt";
const SYSTEM_PACKAGES: &str = "system-packages.txt";

/// Installs the packages of a language. pip is not in the image, and is not left there.
const INSTALL_PYTHON: &str = "RUN python3 -m venv /tmp/pip \\
    && /tmp/pip/bin/pip --python /opt/kernel/bin/python install --no-cache-dir --prefer-binary -r /opt/kernel/packages.txt \\
    && rm -rf /tmp/pip /root/.cache
";
/// Debian's packages, with their commands and R packages where kernels look for them. Commands are the files of the packages, and what is
/// new in /usr/bin: alternatives are no files of a package.
const INSTALL_SYSTEM: &str = "RUN mkdir -p /opt/kernel/commands && ls /usr/bin >/tmp/before && apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(cat /opt/kernel/system-packages.txt) \\
    && { dpkg -L $(cat /opt/kernel/system-packages.txt) | grep '^/usr/bin/.'; \\
        ls /usr/bin | comm -13 /tmp/before - | sed 's|^|/usr/bin/|'; } | xargs -r ln -sft /opt/kernel/commands \\
    && rm /tmp/before \\
    && if [ -d /opt/kernel/library ]; then ln -sfnt /opt/kernel/library /usr/lib/R/site-library/*; fi \\
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
";

/// A kernel's image with more packages.
#[derive(Debug)]
pub struct Derived {
    kernel: KernelSpec,
    packages: Vec<String>,
    system_packages: Vec<String>,
}

#[derive(Debug, Error)]
pub enum DerivedError {
    #[error("{0:?} is not a package: write NAME, or NAME with versions (NAME==1.2)")]
    Package(String),
    #[error("packages of {0} cannot be added; with --system-packages, those of Debian can")]
    Language(String),
    #[error("there is no image of {kernel}; {remedy}")]
    NoBase { kernel: String, remedy: String },
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl Derived {
    /// `packages` are requirements of pip, `system_packages` names in Debian.
    ///
    /// # Errors
    /// If a text is no package, or the kernel's language has no packages that can be added.
    pub fn new(kernel: &KernelSpec, packages: Vec<String>, system_packages: Vec<String>) -> Result<Self, DerivedError> {
        if !packages.is_empty() && kernel.language != "python" {
            return Err(DerivedError::Language(kernel.display_name.clone()));
        }
        // The texts become lines of files, of which the second is read by a shell.
        let in_line = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        let of_debian = |byte: u8| byte.is_ascii_alphanumeric() || b".+-:=~".contains(&byte);
        let is_package = |text: &str, allowed: &dyn Fn(u8) -> bool| {
            text.bytes().all(allowed) && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        };
        let bad = packages.iter().find(|text| !is_package(text, &in_line));
        let bad = bad.or_else(|| system_packages.iter().find(|text| !is_package(text, &of_debian)));
        match bad {
            Some(bad) => Err(DerivedError::Package(bad.clone())),
            None => Ok(Self { kernel: kernel.clone(), packages, system_packages }),
        }
    }

    /// The build context.
    fn files(&self, base: &str) -> Vec<(String, String)> {
        let mut dockerfile = format!("FROM {base}\nUSER 0:0\n");
        let mut files = Vec::new();
        for (name, packages, install) in
            [(SYSTEM_PACKAGES, &self.system_packages, INSTALL_SYSTEM), (PACKAGES, &self.packages, INSTALL_PYTHON)]
        {
            if !packages.is_empty() {
                let _ = write!(dockerfile, "COPY {name} /opt/kernel/\n{install}");
                files.push((name.to_owned(), packages.join("\n") + "\n"));
            }
        }
        dockerfile.push_str("USER 65532:65532\n");
        files.push(("Dockerfile".to_owned(), dockerfile));
        files
    }
}

impl Images {
    /// Builds a derived image with this reference. Returns whether it was built: the same packages on the same image are not built
    /// again.
    ///
    /// # Errors
    /// [`DerivedError`]; an existing image stays unchanged.
    pub async fn build_derived(
        &self,
        derived: &Derived,
        reference: &str,
        options: &BuildOptions,
        progress: &mut dyn FnMut(&str),
    ) -> Result<bool, DerivedError> {
        let kernel = &derived.kernel;
        let base = self.status(kernel).await.map_err(BuildError::from)?;
        let (Some(id), false) = (base.id, base.status == Status::Missing) else {
            return Err(DerivedError::NoBase { kernel: kernel.name.clone(), remedy: images::how_to_get(kernel) });
        };
        let files = derived.files(&base.reference);
        let content = hash(&id, &files);
        if !options.no_cache && label(&self.docker, reference).await.as_deref() == Some(&content) {
            return Ok(false);
        }
        let context = archive(files).map_err(BuildError::from)?;
        self.run_build(reference, (LABEL_CONTENT, content), context, options, progress).await?;
        Ok(true)
    }
}

fn hash(base: &str, files: &[(String, String)]) -> String {
    let mut hash = Sha256::new();
    let texts = files.iter().flat_map(|(name, content)| [name.as_str(), content.as_str()]);
    for text in std::iter::once(base).chain(texts) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex::encode(hash.finalize())
}

/// The hash of what an image was made from. `None` if there is no such image.
async fn label(docker: &Docker, reference: &str) -> Option<String> {
    let image = call(docker.inspect_image(reference)).await.ok()?;
    image.config?.labels?.remove(LABEL_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    fn derived(kernel: &str, packages: &[&str], system: &[&str]) -> Result<Derived, DerivedError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Derived::new(kernels::find(kernel).unwrap(), owned(packages), owned(system))
    }

    #[test]
    fn packages_cannot_become_commands_or_options() {
        let good =
            ["lightgbm", "shap==0.50", "pandas[excel]>=2,<4; python_version>='3.11'", "x @ https://example.org/x.whl"];
        assert!(derived("python", &good, &["graphviz", "g++-12", "libx:amd64=1.2~rc1"]).is_ok());
        for bad in ["", "-r x", "--index-url=x", "a\nb", "a\0", "é"] {
            assert!(derived("python", &[bad], &[]).unwrap_err().to_string().contains("not a package"), "{bad:?}");
        }
        for bad in ["", "a b", "$(reboot)", "a;b", "a|b", "-y", "`x`", "a&b", "a/b"] {
            assert!(derived("bash", &[], &[bad]).is_err(), "{bad:?}");
        }
        assert!(derived("r", &["dplyr"], &[]).unwrap_err().to_string().contains("--system-packages"));
    }

    #[test]
    fn same_content_has_same_hash() {
        let of = |packages: &[&str], base: &str| hash(base, &derived("python", packages, &["jq"]).unwrap().files("b"));
        assert_eq!(of(&["a"], "sha256:1"), of(&["a"], "sha256:1"));
        assert!(of(&["a"], "sha256:1") != of(&["a"], "sha256:2") && of(&["a"], "x") != of(&["b"], "x"));
        let files = derived("python", &[], &["jq"]).unwrap().files("base:1");
        assert_eq!(files.len(), 2, "nothing is installed by pip: {files:?}");
        assert!(files[1].1.starts_with("FROM base:1\nUSER 0:0\n") && files[1].1.ends_with("USER 65532:65532\n"));
    }
}
