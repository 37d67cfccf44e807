use chat::Bytes;

/// What doesn't change while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The maker's name of the machine, "Mac15,3".
    pub model: Option<String>,
    /// The processor, "Apple M3".
    pub chip: String,
    /// The operating system and its version, "macOS 26.1".
    pub os: String,
    /// Memory of the machine.
    pub ram: Option<Bytes>,
    /// Logical cores.
    pub cores: usize,
    /// Cores of the fastest kind. Known on Apple silicon only.
    pub performance_cores: Option<usize>,
}

/// Asks the system what machine this is. Costs a few milliseconds, so ask once.
pub fn machine() -> Machine {
    Machine {
        model: None,
        chip: std::env::consts::ARCH.to_owned(),
        os: std::env::consts::OS.to_owned(),
        ram: None,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        performance_cores: None,
    }
}
