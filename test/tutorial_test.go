package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// tutorialScript is what the tutorial has a new user type for three servers.
func tutorialScript(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/TUTORIAL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, found := strings.Cut(string(text), "\n## 9. Three servers\n")
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(chapter, -1)
	if !found || len(blocks) < 4 {
		t.Fatalf("chapter 9 has %d blocks of commands", len(blocks))
	}
	script := "set -euo pipefail\n"
	for _, block := range blocks {
		script += block[1]
	}
	return script
}

// The three machines of the tutorial are hosts in network namespaces, each with directories of
// its own in the places that the tutorial names. ssh runs a command there, scp copies a file
// there, systemctl has the test start what the unit starts, with its variables.
const (
	tutorialSSH = `#!/bin/bash
target=${1#root@}; shift
exec nsenter --net="$(cat "$PLACES/$target/net")" unshare -m "$PLACES/inside" "$target" bash -c "$*"
`
	tutorialSCP = `#!/bin/bash
target=${!#}; host=${target%%:*}; host=${host#root@}; to=${target#*:}
[ "$to" = /usr/local/bin/ ] && exit 0 # all machines share the program
[ "$to" = /etc/systemd/system/ ] && exit 0
case "$to" in /etc/eboot/*) ;; *) echo "scp: what is $to?" >&2; exit 1 ;; esac
cp "${@:1:$#-1}" "$PLACES/$host/etc/${to#/etc/eboot/}"
`
	tutorialSystemctl = `#!/bin/bash
[ "$*" = "enable --now eboot" ] || { echo "systemctl: what is $*?" >&2; exit 1; }
touch "$PLACES/$HOST_ADDRESS/start"
`
	tutorialInside = `#!/bin/bash
export HOST_ADDRESS=$1; shift
for pair in etc:/etc/eboot var:/var/lib/eboot run:/run/eboot; do
  mount --bind "$PLACES/$HOST_ADDRESS/${pair%%:*}" "${pair#*:}"
done
exec "$@"
`
)

// A new user gets from nothing to three servers with certificates, and to a node that they boot,
// with the tutorial's commands alone.
func TestTutorial(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	testutil.RequireRoot(t)
	network := testnet.New(t, 5)
	places := tutorialPlaces(t, network)
	program, err := program()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(places, "bin")
	if err := os.Symlink(program, filepath.Join(bin, "eboot")); err != nil {
		t.Fatal(err)
	}
	script := tutorialScript(t)
	for i := range 3 {
		script = strings.ReplaceAll(script, fmt.Sprintf("10.1.0.%d", i+2), network.Host(i).Address.String())
	}
	first := network.Host(0).Address.As4()
	script = strings.ReplaceAll(script, "10.1.0.$((i + 1))", fmt.Sprintf("%d.%d.%d.$((i + %d))", first[0], first[1], first[2], first[3]-1))
	script = strings.ReplaceAll(script, "10.1.0.0/16", fmt.Sprintf("%d.%d.0.0/16", first[0], first[1]))
	script = strings.ReplaceAll(script, "/usr/lib/erlang", erl.Root)
	if strings.Contains(script, "10.1.") {
		t.Fatalf("an address of the tutorial has no host here:\n%s", script)
	}

	env := []string{"PLACES=" + places, "PATH=" + bin + ":" + os.Getenv("PATH"), "EBOOT_ADDRESS=", "EBOOT_TOKEN="}
	user := network.Host(3).Start(t, testnet.Command{Args: []string{"bash", "-x", "-c", script}, Env: env, Dir: filepath.Join(places, "work"), Name: "user"})
	started := map[string]bool{}
	testutil.Poll(t, 3*time.Minute, "the tutorial's commands are to end", func() bool {
		for i := range 3 {
			host := network.Host(i)
			address := host.Address.String()
			if _, err := os.Stat(filepath.Join(places, address, "start")); err == nil && !started[address] {
				started[address] = true
				host.Start(t, testnet.Command{Args: append([]string{"unshare", "-m", filepath.Join(places, "inside"), address}, strings.Fields(unitLine(t, "ExecStart="))...),
					Env: append(env, unitVariables(t)...), Name: "server at " + address})
			}
		}
		select {
		case <-user.Ended():
			return true
		default:
			return false
		}
	})
	said := user.Output()
	if len(started) != 3 || !strings.Contains(said, "me (token) from ") || !strings.Contains(said, ": admin") || strings.Count(said, "alive") < 3 {
		t.Fatalf("%d servers were started; the commands said:\n%s", len(started), said)
	}
	var hosts []string
	for i := range 3 {
		hosts = append(hosts, network.Host(i).Address.String())
	}
	testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: hosts, Root: erl.Root, Namespace: network.Host(4).Namespace}).Report(60 * time.Second)
}

// tutorialPlaces makes what the machines keep, and the programs that reach them.
func tutorialPlaces(t *testing.T, network *testnet.Network) string {
	t.Helper()
	places := t.TempDir()
	for _, dir := range []string{"/etc/eboot", "/var/lib/eboot", "/run/eboot"} { // that something can be mounted there
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Skipf("the tutorial's directories cannot be made here: %v", err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
	}
	for i := range 3 {
		host := network.Host(i)
		for _, dir := range []string{"etc", "var", "run"} {
			if err := os.MkdirAll(filepath.Join(places, host.Address.String(), dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(places, host.Address.String(), "net"), host.Namespace.Path())
	}
	for _, dir := range []string{"bin", "work/deploy"} {
		if err := os.MkdirAll(filepath.Join(places, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"bin/ssh": tutorialSSH, "bin/scp": tutorialSCP, "bin/systemctl": tutorialSystemctl, "inside": tutorialInside} {
		if err := os.WriteFile(filepath.Join(places, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return places
}

// unitLine is the value of a key in the systemd unit that the tutorial installs.
func unitLine(t *testing.T, key string) string {
	t.Helper()
	lines := unitLines(t, key)
	if len(lines) != 1 {
		t.Fatalf("the unit has %d lines %s", len(lines), key)
	}
	return strings.Replace(lines[0], "/usr/local/bin/", "", 1)
}

func unitLines(t *testing.T, key string) (values []string) {
	t.Helper()
	text, err := os.ReadFile("../deploy/eboot.service")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key); ok {
			values = append(values, value)
		}
	}
	return values
}

// unitVariables are the unit's, with the files where its credentials are copied from.
func unitVariables(t *testing.T) []string {
	t.Helper()
	from := map[string]string{}
	for _, line := range unitLines(t, "LoadCredential=") {
		name, path, _ := strings.Cut(line, ":")
		from[name] = path
	}
	var variables []string
	for _, line := range unitLines(t, "Environment=") {
		key, value, _ := strings.Cut(line, "=%d/")
		if from[value] == "" {
			t.Fatalf("the unit's Environment=%s names no credential", line)
		}
		variables = append(variables, key+"="+from[value])
	}
	return variables
}
