package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// clockTick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every
// architecture that Go knows (proc(5)).
const clockTick = time.Second / 100

// cpuTime is what all threads of a process have used until now, ended ones included.
func cpuTime(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	used, err := parseCPU(data)
	if err != nil {
		tb.Fatal(err)
	}
	return used
}

// parseCPU adds utime and stime, fields 14 and 15 of proc(5). The name of the program,
// field 2, may hold spaces and parentheses.
func parseCPU(stat []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:]) // from field 3 on
	if end < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat %q: too short", stat)
	}
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat %q: %w", stat, err)
		}
		ticks += time.Duration(n)
	}
	return ticks * clockTick, nil
}

// resident is the memory of a process, in bytes.
type resident struct {
	now  int64 // VmRSS
	peak int64 // VmHWM: since the start, or since resetPeak
	anon int64 // RssAnon: without the pages of the binary and of mapped files
}

func readResident(tb testing.TB, pid int) resident {
	tb.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	r, err := parseResident(string(data))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func parseResident(status string) (resident, error) {
	var r resident
	found := 0
	for line := range strings.Lines(status) {
		name, rest, _ := strings.Cut(line, ":")
		var into *int64
		switch name {
		case "VmRSS":
			into = &r.now
		case "VmHWM":
			into = &r.peak
		case "RssAnon":
			into = &r.anon
		default:
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d kB", into); err != nil {
			return r, fmt.Errorf("/proc/PID/status line %q: %w", line, err)
		}
		*into *= 1024
		found++
	}
	if found != 3 {
		return r, fmt.Errorf("/proc/PID/status: %d of VmRSS, VmHWM and RssAnon", found)
	}
	return r, nil
}

// resetPeak makes the present memory of a process its peak. Where the kernel does not
// offer that, the peak stays the one since the start, which is never lower.
func resetPeak(pid int) { _ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) }

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

func TestParseCPU(t *testing.T) {
	got, err := parseCPU([]byte("42 (a ) b) S 1 42 42 0 -1 4194560 5 6 7 8 150 25 0 0 20 0 9 0 100 200 300\n"))
	if err != nil || got != 1750*time.Millisecond {
		t.Errorf("got %v, %v; want 1.75s", got, err)
	}
	if _, err := parseCPU([]byte("42 (a) S 1")); err == nil {
		t.Error("a line that is cut off was accepted")
	}
}

func TestCPUTimeOfAChild(t *testing.T) {
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo done; read end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	measured := cpuTime(t, cmd.Process.Pid)
	memory := readResident(t, cmd.Process.Pid)
	_ = in.Close()
	_ = cmd.Wait() // read fails at the end of its input
	whole := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if measured == 0 || whole-measured > 10*clockTick {
		t.Errorf("measured %v while it ran, the kernel says %v at its end", measured, whole)
	}
	if memory.now <= 0 || memory.peak < memory.now || memory.anon > memory.now {
		t.Errorf("memory %+v", memory)
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident("Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t  100 kB\n")
	if want := (resident{now: 200 << 10, peak: 300 << 10, anon: 100 << 10}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseResident("VmRSS:\t  200 kB\n"); err == nil {
		t.Error("a status without peak was accepted")
	}
}
