//! placeholder
use crate::args::{BenchArgs, Global};
use dispense_client::Error;
pub(super) async fn bench(_global: &Global, _args: BenchArgs) -> Result<u8, Error> {
    Ok(0)
}
