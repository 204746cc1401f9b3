package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"eboot": main})
}

// Each script may run a server: EBOOT has one UDP port, so each has a loopback
// address of its own, $IP, and its configuration is in eboot.yaml.
func TestScripts(t *testing.T) {
	var next atomic.Uint32
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("EBOOT_TEST_UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			ip := netip.AddrFrom4([4]byte{127, 0, 2, byte(next.Add(1))})
			env.Setenv("IP", ip.String())
			env.Setenv("EBOOT_ADDRESS", fmt.Sprintf("http://%s:4380", ip))
			env.Setenv("HOME", env.WorkDir)
			for file, data := range map[string]string{"eboot.yaml": "data", "second.yaml": "data2"} {
				settings := fmt.Sprintf("data_dir: %s\nboot: {bind: [%s], tcp_ports: 4368-4399}\napi: {bind: '%s:4380'}\nlog: {level: warn}\n",
					filepath.Join(env.WorkDir, data), ip, ip)
				if err := os.WriteFile(filepath.Join(env.WorkDir, file), []byte(settings), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"await":  await,
			"mask":   mask,
			"status": status,
		},
	})
}

// await runs eboot with args until it succeeds, for at most 30 seconds.
func await(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ts.Exec("eboot", args...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("eboot %v: not so after 30 s: %v", args, err)
		}
		<-tick.C
	}
}

// status runs a command and wants an exit code: status CODE COMMAND ARG...
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// maskTable replaces what differs from run to run.
var maskTable = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "DIGEST"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "SHORT"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`), "TIME"},
	{regexp.MustCompile(`127\.0\.2\.\d+`), "IP"},
	{regexp.MustCompile(`"free_bytes": \d+`), `"free_bytes": 0`},
	{regexp.MustCompile(`[\d.]+ [kMGTP]?B free`), "SPACE free"},
	{regexp.MustCompile(`[ \t]+\n`), "\n"},
}

// mask writes what a command printed (stdout or stderr) to a file, with what
// differs from run to run replaced: mask stdout FILE.
func mask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mask stdout|stderr FILE")
	}
	text := ts.ReadFile(args[0])
	for _, row := range maskTable {
		text = row.pattern.ReplaceAllString(text, row.with)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}
