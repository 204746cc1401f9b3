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
	start := func(embedded bool, eval string) *testutil.Slave {
		return testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Root: slaveRoot, Embedded: embedded, Eval: eval})
	}
	peaks := map[bool]map[string][]int{false: {}, true: {}} // by embedded and loader
	for loader, eval := range map[string]string{
		eboot.LoaderStock: loaderIsStock + `, io:format("holds 0 0~n"), receive after infinity -> ok end.`,
		eboot.LoaderEboot: loaderIsOurs + "," + heldEval + `, receive after infinity -> ok end.`,
	} {
		setLoader(t, c.client, loader)
		var nodes []*testutil.Slave
		for i := range 2 * n {
			embedded := i%2 == 1
			for range 2 { // teaches the server what such a boot needs
				checkNode(t, start(embedded, `io:format("went well~n"), halt(0).`), bootDeadline)
			}
			nodes = append(nodes, start(embedded, eval))
		}
		for i, node := range nodes {
			embedded := i%2 == 1
			testutil.Poll(t, bootDeadline+10*time.Second, "node is to say what it holds", func() bool {
				if node.Exited() {
					t.Fatalf("node ended:\n%s", node.Output())
				}
				return heldLine.MatchString(node.Output())
			})
			peak := peakMemory(t, node.PID())
			peaks[embedded][loader] = append(peaks[embedded][loader], peak)
			held := heldLine.FindStringSubmatch(node.Output())
			binaries, _ := strconv.Atoi(held[1])
			memory, _ := strconv.Atoi(held[2])
			if binaries > maxBinaries || memory > maxMemory {
				t.Errorf("%s: ten seconds after the boot the loader holds %d bytes of binaries and %d of memory", modeName(embedded), binaries, memory)
			}
			t.Logf("%s, %s loader: peak %d KiB", modeName(embedded), loader, peak>>10)
			if loader == eboot.LoaderEboot {
				t.Logf("%s: ten seconds after the boot the loader holds %d bytes of binaries and %d of memory", modeName(embedded), binaries, memory)
			}
			node.Kill()
		}
	}
	for embedded, peaks := range peaks {
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
