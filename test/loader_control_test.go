package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/peerrpc"
	"eboot/internal/testutil"
)

// restartEval prints what a life of the node runs, after a table that the life before may have
// left, and then asks for files without end.
const restartEval = loaderIsOurs + `,
	{ok, V, _} = erl_prim_loader:get_file(code:root_dir() ++ "/etc/version"),
	{ok, C} = application:get_env(kernel, from),
	io:format("~nlife ~s ~s ~s ~p~n", [V, C, os:getpid(), ets:info(life, size)]),
	spawn(fun() -> ets:new(life, [named_table]), receive stop -> ok end end),
	[spawn(fun Ask() -> {ok, _, _} = erl_prim_loader:get_file(code:root_dir() ++ "/etc/version"), Ask() end) || _ <- lists:seq(1, Busy)]`

// restartTree is an installation whose nodes know its version from a file and from its
// sys.config.
func restartTree(t testing.TB, erl testutil.Erlang, version int) string {
	t.Helper()
	tree := smallTree(t, erl)
	boot, err := os.ReadFile(erl.BootScript())
	if err != nil {
		t.Fatal(err)
	}
	write(t, tree+"/etc/version", fmt.Sprint(version))
	write(t, tree+"/releases/1/start.boot", string(boot))
	write(t, tree+"/releases/1/sys.config", fmt.Sprintf(`[{kernel, [{from, "%d"}]}].`, version))
	return tree
}

// controlled is a slave that can be told to restart.
type controlled struct {
	*testutil.Slave
	server *server
}

func startControlled(t testing.TB, erl testutil.Erlang, s *server, hosts []string, embedded bool, busy int) controlled {
	t.Helper()
	if _, err := s.Client.SetChannel(t.Context(), eboot.DefaultChannel, api.ChannelSet{Options: eboot.ChannelOptions{Control: eboot.ControlOn}}); err != nil {
		t.Fatal(err)
	}
	return controlled{testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: hosts, Root: slaveRoot, Embedded: embedded,
		Eval: fmt.Sprintf("Busy = %d, %s", busy, restartEval)}), s}
}

// boot waits until ok says so of the nth boot of the slave, and returns it.
func (c controlled) boot(t testing.TB, n int, what string, ok func(eboot.Boot) bool) eboot.Boot {
	t.Helper()
	var boots []eboot.Boot
	testutil.Poll(t, bootDeadline, fmt.Sprintf("boot %d is to be %s", n, what), func() bool {
		if c.Exited() {
			t.Fatalf("the node ended:\n%s", c.Output())
		}
		var err error
		boots, err = c.server.Client.Boots(t.Context(), bootSlaveAddress)
		return err == nil && len(boots) >= n && boots[len(boots)-n].Cured != nil && ok(boots[len(boots)-n])
	})
	return boots[len(boots)-n]
}

func (c controlled) restart(b eboot.Boot) error {
	return c.server.agent.RestartSlave(peerrpc.RestartRequest{Slave: b.Slave, Number: b.Cured.Number})
}

// lives are what restartEval has printed: "version sys.config pid table".
func (c controlled) lives() (lives []string) {
	for line := range strings.Lines(c.Output()) {
		if life, ok := strings.CutPrefix(line, "life "); ok && strings.HasSuffix(line, "\n") {
			lives = append(lives, strings.TrimSpace(life))
		}
	}
	return lives
}

// up waits for the end of the nth boot and for what it prints.
func (c controlled) up(t testing.TB, n int) eboot.Boot {
	t.Helper()
	return c.boot(t, n, "up", func(b eboot.Boot) bool { return b.Phase == eboot.BootStarted && len(c.lives()) >= n })
}

func phasesOf(b eboot.Boot) (phases []string) {
	for _, p := range b.Cured.Phases {
		phases = append(phases, p.Phase)
	}
	return phases
}

// TestAcceptanceLoaderRestarts: a slave that is told to restart boots what its channel points to now, in the
// same process of its system, whatever it does just then. It can be told again.
func TestAcceptanceLoaderRestarts(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	for _, embedded := range []bool{false, true} {
		for _, busy := range []int{0, 20} {
			if !acceptance() && embedded == (busy == 0) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", modeName(embedded), busy), func(t *testing.T) {
				s := startEboot(t, erl, restartTree(t, erl, 1), []string{slaveRoot})
				c := startControlled(t, erl, s, []string{s.Address}, embedded, busy)
				first := c.up(t, 1)
				publishTree(t, s.Client, erl, eboot.Ref{Name: "otp", Version: "2"}, restartTree(t, erl, 2))
				if err := c.restart(first); err != nil {
					t.Fatal(err)
				}
				told := time.Now()
				second := c.up(t, 2)
				t.Logf("up again after %v", time.Since(told))
				if err := c.restart(first); err == nil {
					t.Error("a boot before this one was told to restart")
				}
				if err := c.restart(second); err != nil {
					t.Fatal(err)
				}
				c.up(t, 3)
				pid := strings.Fields(c.lives()[0])[2]
				if want := []string{"1 1 " + pid + " undefined", "2 2 " + pid + " undefined", "2 2 " + pid + " undefined"}; !slices.Equal(c.lives(), want) {
					t.Errorf("lives %q, want %q", c.lives(), want)
				}
				before := c.boot(t, 1, "closed", func(b eboot.Boot) bool { return b.Phase == eboot.BootClosed })
				if phases := phasesOf(before); phases[len(phases)-1] != "restarting" || second.Bundle.Version != "2" || before.Cured.Switches != 0 {
					t.Errorf("the boot before: %v, %+v, the next %s", phases, before.Cured, second.Bundle)
				}
				if strings.Contains(c.Output(), "rror") {
					t.Errorf("the node complained:\n%s", c.Output())
				}
			})
		}
	}
}

// TestLoaderRestartsAfterTheBoot: one that is told in the middle of its boot comes to the
// end of it first.
func TestLoaderRestartsAfterTheBoot(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	s := startEboot(t, erl, restartTree(t, erl, 1), []string{slaveRoot})
	way := takeAddress(t)
	testutil.StartDelay(t, testutil.DelayOptions{Address: way, Server: s.Address, RoundTrip: 200 * time.Millisecond})
	c := startControlled(t, erl, s, []string{way}, false, 0)
	var first eboot.Boot
	c.boot(t, 1, "told to restart", func(b eboot.Boot) bool {
		first = b
		return c.restart(b) == nil
	})
	if !first.Loaded.IsZero() {
		t.Fatal("it was told after its boot")
	}
	second := c.boot(t, 2, "up", func(b eboot.Boot) bool { return b.Phase == eboot.BootStarted })
	phases := phasesOf(c.boot(t, 1, "over", func(eboot.Boot) bool { return true }))
	if n := len(phases); phases[n-1] != "restarting" || phases[n-2] != "started" || second.Cured.Number == first.Cured.Number {
		t.Errorf("phases %v, then %+v", phases, second.Cured)
	}
}
