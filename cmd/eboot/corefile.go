package main

import "syscall"

// withoutCoreFiles keeps the memory of this process, in which there may be keys, out of
// core files. One byte is too small for a file, as 0 is, and is the only limit at which the kernel
// also starts no program that takes cores (core(5): a limit of 0 does not keep it from
// that; fs/coredump.c). The hard limit stays, for who looks for an error:
// `prlimit --core=unlimited --pid PID` gives cores back.
func withoutCoreFiles() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil {
		return err
	}
	limit.Cur = min(1, limit.Max)
	return syscall.Setrlimit(syscall.RLIMIT_CORE, &limit)
}
