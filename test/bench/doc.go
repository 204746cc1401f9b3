// Package bench measures eboot as its users run it: the binary as a process of its
// own, on a data directory of its own, over real sockets, beside what it is compared
// with on the same machine in the same run. `make bench` runs it.
//
// The references are OTP's own erl_boot_server with the default flags of its emulator, a server of
// thirty lines around sendfile(2), and cp with one sync. What three servers take that belong together
// (Group in the name) stands beside what one server alone takes, or its leader. A comparison is made in rounds: each
// round measures both, the order changes from round to round, and what is reported is the ratio of
// the totals with the lowest and the highest ratio of one round. -benchtime 7x
// means seven rounds.
//
// The load generator runs in the benchmark's process and shares the machine with the
// servers, so a rate is one of the whole machine; three servers share it as well, and its disk.
// The CPU time of a server is that of all its threads, as the kernel counts it; it is hardly
// touched by who else runs.
//
// Nothing here fails because a figure was missed: machines differ. The table at the end
// says which figure was wanted and whether it was met, and goes to the file EBOOT_BENCH_REPORT as
// well. What fails a benchmark is a server that serves something else than it should.
//
// EBOOT_BIN names the binary to measure; without it one is built. The files of a run, up to
// 7 GiB, are below TMPDIR, or /var/tmp, and are removed at its end.
package bench
