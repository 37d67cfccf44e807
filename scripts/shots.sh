#!/usr/bin/env bash
# Pictures of the real window -> target/shots/real-*.png: panel and window, light and dark. Needs what scripts/e2e.sh needs.
set -euo pipefail
exec "$(dirname "$0")/e2e.sh" shots
