package test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// heldEval waits until ten seconds after the boot, without asking the loader for anything, and
// prints what its process holds then: bytes of binaries, and of its own memory.
const heldEval = `
	Loader = whereis(erl_prim_loader),
	receive after 10000 -> ok end,
	{binary, Binaries} = process_info(Loader, binary),
	{memory, Memory} = process_info(Loader, memory),
	io:format("holds ~w ~w~n", [lists:sum([Size || {_, Size, _} <- Binaries]), Memory])`

var heldLine = regexp.MustCompile(`(?m)^holds (\d+) (\d+)$`)

// TestAcceptanceLoaderMemory compares the peak of a node's memory with that of a boot by the
// stock loader, and looks at what is left of the prefetch.
func TestAcceptanceLoaderMemory(t *testing.T) {
	erl := testutil.RequireErl(t)
	c := startBootable(t, erl, 1, "127.0.0.0/8", clusterOptions{})
	c.WaitReady(t, erl, bootSlave)
	n := many(1, 5)
	const maxMore = 16 << 20
	// What a process of the runtime system keeps: its heap, and the latest chunk that it read.
	const maxBinaries, maxMemory = 256 << 10, 1 << 20
	for _, embedded := range []bool{false, true} {
		for range 2 { // teach
			checkNode(t, testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Root: slaveRoot, Embedded: embedded,
				Eval: loaderIsOurs + `, io:format("went well~n"), halt(0).`}), bootDeadline)
		}
		peaks := map[string][]int{}
		for _, loader := range []string{eboot.LoaderStock, eboot.LoaderEboot} {
			setLoader(t, c.client, loader)
			check := map[string]string{eboot.LoaderStock: loaderIsStock, eboot.LoaderEboot: loaderIsOurs}[loader]
			nodes := make([]*testutil.Slave, n)
			for i := range nodes {
				nodes[i] = testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Root: slaveRoot, Embedded: embedded,
					Eval: check + "," + heldEval + `, receive after infinity -> ok end.`})
			}
			for _, node := range nodes {
				testutil.Poll(t, bootDeadline+10*time.Second, "node is to say what it holds", func() bool {
					if node.Exited() {
						t.Fatalf("node ended:\n%s", node.Output())
					}
					return heldLine.MatchString(node.Output())
				})
				peaks[loader] = append(peaks[loader], peakMemory(t, node.PID()))
				found := heldLine.FindStringSubmatch(node.Output())
				binaries, _ := strconv.Atoi(found[1])
				memory, _ := strconv.Atoi(found[2])
				if loader == eboot.LoaderEboot && (binaries > maxBinaries || memory > maxMemory) {
					t.Errorf("%s: ten seconds after the boot the loader holds %d bytes of binaries and %d of memory", modeName(embedded), binaries, memory)
				}
				t.Logf("%s, %s loader: peak %d KiB, then %d bytes of binaries and %d of memory", modeName(embedded), loader,
					peaks[loader][len(peaks[loader])-1]>>10, binaries, memory)
			}
			for _, node := range nodes {
				node.Kill()
			}
		}
		setLoader(t, c.client, eboot.LoaderEboot)
		more := slices.Max(peaks[eboot.LoaderEboot]) - slices.Min(peaks[eboot.LoaderStock])
		if more > maxMore {
			t.Errorf("%s: a node takes up to %d KiB more than with the stock loader, want at most %d", modeName(embedded), more>>10, maxMore>>10)
		}
		t.Logf("%s: at most %d KiB more at the peak than with the stock loader, in %d boots of each", modeName(embedded), more>>10, n)
	}
}

// peakMemory is the largest resident size that a process had, in bytes (VmHWM, proc(5)).
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}
