# Thin names for `cargo xtask …`. scripts/bootstrap.sh installs what xtask itself needs (compiler, Rust, system packages).
.PHONY: run setup test ci shots bench bench-count bindings clean help
.DEFAULT_GOAL := help

run setup test ci shots bench bench-count bindings:
	@scripts/bootstrap.sh $@ $(ARGS)

# Keeps the models and the caches under ~/.cache/tidegate.
clean:
	rm -rf target ui/dist ui/node_modules models/.parts

help:
	@echo 'make run       install what is missing, build, open Tidegate (without a display: chat in the terminal)'
	@echo 'make test      everything that can be tested on this machine'
	@echo 'make setup     only install what is missing and fetch the starter model'
	@echo 'make shots     pictures of every view, for people to look at'
	@echo 'make bench     speed and memory beside llama.cpp (built first: minutes), into docs/BENCHMARKS.md'
	@echo 'make bench-count  instructions of the kernels, compared with those that are committed'
	@echo 'make bindings  write ui/src/ipc/bindings.gen.ts anew'
	@echo 'make clean     remove what was built; models and caches stay'
