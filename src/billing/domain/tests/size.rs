//! The memory of a million accounts, by what is allocated.

use super::*;

/// At every thousandth step on the way, not only where it is best.
#[test]
fn an_account_takes_sixty_bytes_at_most() {
    const ACCOUNTS: u64 = 1_000_000;
    let mut state = State::new(0..BUCKETS);
    let (mut worst, mut worst_key) = (0.0f64, 0.0f64);
    for id in 0..ACCOUNTS {
        let key = Key::new(&id.to_le_bytes()).unwrap();
        let _ = state.apply(&Command::Operate { key, account: id, operation: create(1_000, 1) }, at(id));
        if id >= 500_000 && id % 20_000 == 0 {
            let memory = state.memory();
            worst = worst.max(memory.accounts_bytes as f64 / (id + 1) as f64);
            worst_key = worst_key.max(memory.keys_bytes as f64 / (id + 1) as f64);
        }
    }
    let memory = state.memory();
    let per_account = memory.accounts_bytes as f64 / ACCOUNTS as f64;
    println!(
        "{per_account:.1} bytes an account at 1M (at worst {worst:.1} from 500k on), {:.1} a key (at worst {worst_key:.1})",
        memory.keys_bytes as f64 / ACCOUNTS as f64
    );
    assert!(worst <= 60.0 && per_account <= 60.0, "{per_account} at 1M, {worst} at worst");
    assert!(worst_key <= 85.0);
    assert_eq!(state.accounts_len(), ACCOUNTS as usize);
}
