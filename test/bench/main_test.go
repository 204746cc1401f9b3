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
	summary  report // what they found
	buildDir string // where the binary is built, if it is
)

func TestMain(m *testing.M) {
	if path := os.Getenv(sendfileVariable); path != "" {
		fmt.Fprintln(os.Stderr, serveFile(path))
		os.Exit(1)
	}
	flag.Parse()
	status := 1
	var err error
	if buildDir, err = os.MkdirTemp("", "eboot-bench-*"); err == nil {
		status = m.Run()
		err = errors.Join(summary.print(os.Stdout, os.Getenv("EBOOT_BENCH_REPORT")), os.RemoveAll(buildDir), goleak.Find())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}
