package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// stockLoaderEnvironment, when it is set to "stock", has the harness set every channel that it
// publishes to so: each test of slaves is then one of the stock loader.
const stockLoaderEnvironment = "EBOOT_TEST_LOADER"

// TestAcceptanceStockLoader runs the tests of conformance and failover again, in a process of
// their own, with channels whose loader is the stock one.
func TestAcceptanceStockLoader(t *testing.T) {
	t.Parallel()
	if os.Getenv(stockLoaderEnvironment) != "" {
		t.Skip("this is that run")
	}
	pattern := "^(TestSuite(InetExisting|InetDisconnects|FileRequests))$"
	if acceptance() {
		pattern = "^(TestSuite.*|TestConformance|TestDiscoveryConformance|TestViewsDiffer|TestBootIsPinned.*|" +
			"TestAcceptance(PrioritiesAreReal|RollingRestart|StuckSlave|AddressChange.*|LeaderKilled|PowerCut|Partition))$"
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run", pattern, "-test.v", "-test.timeout", "40m")
	cmd.Env = append(os.Environ(), stockLoaderEnvironment+"=stock")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("with the stock loader: %v\n%s", err, out)
	}
	passed := strings.Count(string(out), "\n--- PASS: ")
	if passed == 0 {
		t.Fatalf("with the stock loader nothing ran:\n%s", out)
	}
	t.Logf("%d tests passed with the stock loader", passed)
	for line := range strings.Lines(string(out)) {
		if acceptance() && !strings.HasPrefix(line, "=== ") {
			t.Log(strings.TrimRight(line, "\n"))
		}
	}
}
