package bench

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// What the benchmarks of this run share, through TestMain.
var (
	summary report // what they found
	runDir  string // holds every file of the run
)

func TestMain(m *testing.M) {
	if path := os.Getenv(sendfileVariable); path != "" {
		fmt.Fprintln(os.Stderr, serveFile(path))
		os.Exit(1)
	}
	flag.Parse()
	status := 1
	var err error
	if runDir, err = os.MkdirTemp(scratch(), "eboot-bench-*"); err == nil {
		status = m.Run()
		err = errors.Join(summary.print(os.Stdout, os.Getenv("EBOOT_BENCH_REPORT")), os.RemoveAll(runDir), goleak.Find())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// scratch is where the run keeps its files: on a disk, where /tmp need not be.
func scratch() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	return "/var/tmp"
}

// newDir makes a directory that stays until the end of the run. Nothing is removed
// before: ext4 does not use the inode of a removed file again for up to five minutes, and each new
// file nearby searches past all of those (fs/ext4/ialloc.c, recently_deleted), which would be
// measured as the time to create it.
func newDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp(runDir, "*")
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}
