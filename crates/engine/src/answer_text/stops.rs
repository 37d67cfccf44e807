use super::held_back;

/// Finds stop strings; nothing of one ever comes out.
pub(crate) struct Stops {
    stops: Vec<String>,
    /// Text that may be the beginning of one.
    held: String,
    stopped: bool,
}

impl Stops {
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: false }
    }

    pub(crate) const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What is certain to belong to the answer after `text`.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        // Of several stop strings the one that is whole first ends the answer, however the text is cut; of two that end
        // together, the longer.
        let ends = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = ends.min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| held_back(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held, now that no text follows.
    pub(crate) fn release(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
