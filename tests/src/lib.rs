//! System tests: see the files beside this folder. Nothing is exported.
