package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"eboot/internal/testutil"
)

// BenchmarkPublish: an installed OTP tree into a fresh server, beside cp and one sync.
func BenchmarkPublish(b *testing.B) {
	erl := testutil.RequireErl(b)
	copyTree(b, erl.Root, filepath.Join(newDir(b), "otp")) // the source is in the page cache from now on
	var publishing, copying tally
	round := 0
	for b.Loop() {
		inTurn(round, func() {
			s := startServer(b, serverOptions{Roots: []string{erl.Root}})
			unix.Sync() // what others left to be written is not ours to pay for
			publishing.add(s.publish("otp", "1", erl.Root).Seconds(), 1)
			s.stop()
		}, func() {
			to := filepath.Join(newDir(b), "otp")
			unix.Sync()
			began := time.Now()
			if out, err := exec.Command("sh", "-c", `cp -r "$0" "$1" && sync`, erl.Root, to).CombinedOutput(); err != nil {
				b.Fatalf("cp and sync: %v\n%s", err, out)
			}
			copying.add(time.Since(began).Seconds(), 1)
		})
		round++
	}
	compared := publishing.over(copying)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(compared.total, "time/copy")
	summary.atMost("publish an installed OTP, eboot/(cp + sync)", compared.total, 2, "≤ 2",
		fmt.Sprintf("%s: %.2f and %.2f s", compared, publishing.value(), copying.value()))
}

// BenchmarkRepublish: the same tree again with one module changed, and unchanged.
func BenchmarkRepublish(b *testing.B) {
	erl := testutil.RequireErl(b)
	tree := filepath.Join(newDir(b), "otp")
	copyTree(b, erl.Root, tree)
	modules, err := filepath.Glob(filepath.Join(tree, "lib", "stdlib-*", "ebin", "*.beam"))
	if err != nil || len(modules) == 0 {
		b.Fatalf("no module of stdlib below %s: %v", tree, err)
	}
	original, err := os.ReadFile(modules[0])
	if err != nil {
		b.Fatal(err)
	}
	s := startServer(b, serverOptions{Roots: []string{tree}})
	s.publish("otp", "0", tree)
	var changed, unchanged, slowest time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		version := fmt.Sprint(rounds)
		if err := os.WriteFile(modules[0], append(original, version...), 0o644); err != nil {
			b.Fatal(err)
		}
		took := s.publish("otp", version, tree)
		changed += took
		slowest = max(slowest, took)
		unchanged += s.publish("otp", version, tree)
	}
	b.ReportMetric(0, "ns/op")
	mean := changed / time.Duration(rounds)
	b.ReportMetric(mean.Seconds(), "s/changed")
	summary.atMost("publish again, one module changed", slowest.Seconds(), 1, "< 1 s", fmt.Sprintf("%s (slowest %s)", milliseconds(mean), milliseconds(slowest)))
	summary.note("publish again, unchanged", milliseconds(unchanged/time.Duration(rounds)))
}
