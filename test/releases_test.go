package test

import (
	"context"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/ingest"
	"eboot/internal/testutil"
	"eboot/test/fixtures"
)

// TestReleasesBoot publishes releases as their tools pack them and boots them on stock
// nodes, in both modes: with -loader and -hosts alone where the boot script brings our loader. A release
// greets with a word that only its sys.config holds.
func TestReleasesBoot(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	const root = "/opt/erlang"
	for _, c := range []struct {
		name, greeting string
		make           func(testing.TB, string) string
	}{
		{"Systools", fixtures.SystoolsGreeting, fixtures.Systools},
		{"Rebar3", fixtures.Rebar3Greeting, fixtures.Rebar3},
		{"Mix", fixtures.MixGreeting, fixtures.Mix},
	} {
		t.Run(c.name, func(t *testing.T) {
			archive := c.make(t, t.TempDir())
			s := startServer(t, serverOptions{Roots: []string{root}})
			s.Allow(t, "127.0.0.0/8")
			found := s.publishArchive(t, archive)
			if len(found.ERTS) != 1 || found.ERTS[0] != erl.ERTS {
				t.Fatalf("found ERTS %v, the machine has %s", found.ERTS, erl.ERTS)
			}
			s.WaitReady(t, erl)
			flags := []string{"-config", root + "/sys"}
			for _, v := range found.Variables {
				flags = append(flags, "-boot_var", v.Name, path.Join(root, v.Directory))
			}
			boot := func(what string, embedded bool, args []string) {
				slave := testutil.StartSlave(t, erl, testutil.SlaveOptions{
					Hosts: []string{s.Address}, Root: root, Embedded: embedded, Args: args, Eval: `io:format("node is up~n"), init:stop().`,
				})
				exit := slave.Wait(60 * time.Second)
				if exit.Status != 0 || !strings.Contains(exit.Output, "node is up") || !strings.Contains(exit.Output, c.greeting) {
					t.Errorf("%s, embedded %v: status %d, wanted %q in its output:\n%s", what, embedded, exit.Status, c.greeting, exit.Output)
				}
			}
			for _, embedded := range []bool{false, true} {
				boot("our loader", embedded, nil) // brings variables and sys.config
				boot("our loader, flags given", embedded, flags)
			}
			setLoader(t, s.Client, eboot.LoaderStock)
			for _, embedded := range []bool{false, true} {
				boot("stock loader", embedded, flags)
			}
		})
	}
}

// TestMixEvaluatesRuntimeConfiguration: Elixir reads runtime.exs from the slave's own disk, so
// our loader puts it there; where it cannot, the console says so.
func TestMixEvaluatesRuntimeConfiguration(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	const root = "/opt/erlang"
	archive := fixtures.MixRuntime(t, t.TempDir())
	s := startServer(t, serverOptions{Roots: []string{root}})
	s.Allow(t, "127.0.0.0/8")
	s.publishArchive(t, archive)
	s.WaitReady(t, erl)
	boot := func(directory, eval string, embedded bool) testutil.Exit {
		return testutil.StartSlave(t, erl, testutil.SlaveOptions{
			Hosts: []string{s.Address}, Root: root, Embedded: embedded, Env: []string{"TMPDIR=" + directory}, Eval: eval,
		}).Wait(60 * time.Second)
	}
	for _, embedded := range []bool{false, true} {
		directory := t.TempDir()
		// It restarts once: the second boot finds what the first one has put there.
		exit := boot(directory, `case os:getenv("AGAIN") of false -> os:putenv("AGAIN", "yes"), init:restart(); _ -> halt(0) end.`, embedded)
		if exit.Status != 0 || strings.Count(exit.Output, fixtures.MixRuntimeGreeting) != 2 {
			t.Errorf("embedded %v: status %d, wanted %q twice in its output:\n%s", embedded, exit.Status, fixtures.MixRuntimeGreeting, exit.Output)
		}
		if put, err := filepath.Glob(directory + "/eboot-*/releases/*/*"); err != nil || len(put) != 2 {
			t.Errorf("embedded %v: put %v, %v", embedded, put, err)
		}
	}
	if exit := boot("/nonexistent", "halt(0).", false); exit.Status == 0 || !strings.Contains(exit.Output, "eboot: the runtime.exs of this release needs files in /nonexistent/eboot-") ||
		!strings.Contains(exit.Output, "(enoent); set TMPDIR") {
		t.Errorf("status %d, wanted what to do in its output:\n%s", exit.Status, exit.Output)
	}
}

func (s *server) publishArchive(t *testing.T, archive string) ingest.Found {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	source, err := ingest.Open(ctx, archive, ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	found := source.Found()
	if _, err := s.Client.Publish(ctx, api.Publish{
		Ref: eboot.Ref{Name: "app", Version: "1"}, ERTS: found.ERTS, BootScript: found.BootScript, SysConfig: found.SysConfig,
		Channel: eboot.DefaultChannel, Source: source,
	}); err != nil {
		t.Fatal(err)
	}
	return found
}
