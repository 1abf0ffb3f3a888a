//! What `/proc` tells of processes: who descends from whom, and how much memory they hold.

use std::collections::HashMap;
use std::fs;

/// A process as `/proc/<pid>/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// `R`, `S`, `T` (stopped), `Z` (ended, not yet waited for), ...
    pub state: char,
}

/// Every process there is. Costs one read per process of the host: not for a hot path.
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(process)
        .collect()
}

/// One process; `None` once it is gone.
pub fn process(pid: i32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Everything that came of `root`, itself left out, in no order. A process that forks meanwhile may hide a child: whoever
/// must get all of them asks again until none is left.
pub fn descendants(root: i32) -> Vec<Process> {
    of(root, &processes())
}

/// The descendants of `root` among `all`.
pub fn of(root: i32, all: &[Process]) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found = Vec::new();
    let mut queue = vec![root];
    // Taking each list out keeps this finite even if pids were reused while `/proc` was read.
    while let Some(parent) = queue.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(child);
            queue.push(child.pid);
        }
    }
    found
}

/// Resident bytes; shared pages count in each process. Zero once it is gone.
pub fn resident_bytes(pid: i32) -> u64 {
    let Ok(statm) = fs::read_to_string(format!("/proc/{pid}/statm")) else { return 0 };
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages.saturating_mul(page_bytes())
}

fn page_bytes() -> u64 {
    // SAFETY: sysconf only reads.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

/// `pid (name) state ppid ...`; the name may hold blanks and parentheses, so what counts is the last one.
fn parse(stat: &str) -> Option<Process> {
    let (pid, _) = stat.split_once(' ')?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, parent, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let process = parse("12 (a) R 1 (b)) S 7 12 12 0").unwrap();
        assert_eq!(process, Process { pid: 12, parent: 7, state: 'S' });
        assert_eq!(parse("12 no"), None);
    }

    #[test]
    fn descendants_are_children_of_children() {
        let process = |pid, parent| Process { pid, parent, state: 'S' };
        let all = [process(2, 1), process(3, 2), process(4, 3), process(5, 1)];
        let mut found: Vec<i32> = of(2, &all).iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [3, 4]);
        let loops = [process(2, 3), process(3, 2)];
        assert!(of(2, &loops).len() <= 2);
    }

    #[test]
    fn this_process_is_seen() {
        let me = std::process::id() as i32;
        assert_eq!(process(me).unwrap().pid, me);
        assert!(resident_bytes(me) > 1 << 16);
        assert_eq!(resident_bytes(i32::MAX), 0);
    }
}
