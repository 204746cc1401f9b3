package test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testutil"
)

// changingModules is how many modules the release "changing" has beside its application: in
// each version they are others.
const changingModules = 40

// makeChanging makes a release whose boot takes more than a second, because each module is called
// when its application starts, and which fails when a module is not of version v. It returns the tree
// and the MD5 of each module in it, in hex.
func makeChanging(t testing.TB, erl testutil.Erlang, v int) (tree string, digests map[string]string) {
	t.Helper()
	tree = smallTree(t, erl)
	ebin := filepath.Join(tree, "lib", "changing-1", "ebin")
	var modules []string
	for i := range changingModules {
		name := fmt.Sprintf("changing_%02d", i)
		modules = append(modules, name)
		write(t, ebin+"/"+name+".erl", fmt.Sprintf("-module(%s).\n-export([version/0]).\nversion() -> %d.\n", name, v))
	}
	write(t, ebin+"/changing.erl", fmt.Sprintf(`-module(changing).
-behaviour(application).
-export([start/2, stop/1, init/1]).
start(_, _) ->
	[begin receive after 30 -> ok end, %d = M:version() end || M <- [%s]],
	supervisor:start_link(?MODULE, []).
stop(_) -> ok.
init([]) -> {ok, {{one_for_one, 1, 5}, []}}.
`, v, strings.Join(modules, ",")))
	modules = append(modules, "changing")
	write(t, ebin+"/changing.app", fmt.Sprintf("{application, changing, [{description, \"modules of one version\"}, {vsn, \"1\"}, {modules, [%s]}, {registered, []},"+
		" {applications, [kernel, stdlib]}, {mod, {changing, []}}]}.\n", strings.Join(modules, ", ")))
	output := erl.Run(t, ebin, "+fnu", "-noinput", "-eval", strings.Join(strings.Fields(`
		[{ok, _} = compile:file(F) || F <- filelib:wildcard("*.erl")],
		_ = application:load(stdlib),
		Version = fun(A) -> {ok, V} = application:get_key(A, vsn), V end,
		ok = file:write_file("start.rel", io_lib:format("~p.~n", [{release, {"changing", "1"}, {erts, erlang:system_info(version)},
			[{kernel, Version(kernel)}, {stdlib, Version(stdlib)}, {changing, "1"}]}])),
		ok = systools:make_script("start", [no_warn_sasl, {path, ["."]}]),
		[begin {ok, {M, D}} = beam_lib:md5(F), io:format("module ~s ~s~n", [M, [io_lib:format("~2.16.0b", [B]) || <<B>> <= D]]) end
			|| Dir <- [".", code:lib_dir(kernel) ++ "/ebin", code:lib_dir(stdlib) ++ "/ebin"], F <- filelib:wildcard(Dir ++ "/*.beam")],
		halt(0).`), " "))
	boot, err := os.ReadFile(ebin + "/start.boot")
	if err != nil {
		t.Fatal(err)
	}
	write(t, tree+"/releases/1/start.boot", string(boot))
	return tree, moduleDigests(output)
}

// moduleDigests reads the lines "module NAME DIGEST" of a node.
func moduleDigests(output string) map[string]string {
	digests := map[string]string{}
	for line := range strings.Lines(output) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "module" {
			digests[fields[1]] = fields[2]
		}
	}
	return digests
}

// digestsEval prints the modules of a node for moduleDigests.
const digestsEval = `[io:format("module ~s ~s~n", [M, [io_lib:format("~2.16.0b", [B]) || <<B>> <= M:module_info(md5)]]) || {M, _} <- code:all_loaded()]`

// versionOf compares the modules that a node has loaded with those of the versions of its
// bundle, and returns which of them it is: one that all agree with.
func versionOf(loaded map[string]string, versions []map[string]string) (int, error) {
	var candidates []int
	for v := range versions {
		candidates = append(candidates, v)
	}
	own := 0
	for module, digest := range loaded {
		if _, known := versions[0][module]; !known {
			continue // preloaded, or the loader itself
		}
		if strings.HasPrefix(module, "changing") {
			own++
		}
		candidates = slices.DeleteFunc(candidates, func(v int) bool { return versions[v][module] != digest })
		if len(candidates) == 0 {
			return 0, fmt.Errorf("module %s is not of the version of the modules before", module)
		}
	}
	if len(candidates) != 1 || own != changingModules+1 {
		return 0, fmt.Errorf("%d modules of the application, which may be of versions %v", own, candidates)
	}
	return candidates[0], nil
}

// TestAcceptanceLoaderPublishInMidBoot publishes a new version in the middle of a boot and
// takes the server in use away after that: the node ends with modules of exactly one version.
func TestAcceptanceLoaderPublishInMidBoot(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	c := startCluster(t, 3, clusterOptions{})
	c.Allow(t, "127.0.0.0/8")
	var trees []string
	var versions []map[string]string
	for v := range 2 {
		tree, digests := makeChanging(t, erl, v)
		trees, versions = append(trees, tree), append(versions, digests)
	}
	published := 0
	publish := func() {
		t.Helper()
		// The same modules as the one before the last, and yet another bundle.
		tree := trees[published%2]
		write(t, tree+"/releases/number", fmt.Sprint(published))
		publishTree(t, c.client, erl, eboot.Ref{Name: "changing", Version: fmt.Sprint(published)}, tree)
		published++
	}
	publish()
	w := newWays(t, c)
	n := many(3, 100)
	ended := map[string]int{}
	for i, tries := 0, 0; i < n; tries++ {
		if tries > 2*n+10 {
			t.Fatalf("in %d boots only %d were in the middle when the server was taken away", tries, i)
		}
		c.WaitFormed(t)
		c.WaitReady(t, erl, bootSlave)
		favourite := c.Favourite(t, erl, bootSlave)
		way := slices.Index(c.servers, favourite)
		w.Open(t, nil)
		began := time.Now()
		node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: w.addresses, Root: slaveRoot, Embedded: tries%2 == 1,
			Eval: loaderIsOurs + "," + digestsEval + `, io:format("went well~n"), halt(0).`})
		after := 500*time.Millisecond + rand.N(1200*time.Millisecond)
		<-time.After(time.Until(began.Add(after)))
		publish()
		running := !node.Exited()
		if tries%10 == 0 {
			favourite.Kill()
		}
		w.open()[way].Sever()
		exit := checkNode(t, node, bootDeadline)
		others := 0
		for j, d := range w.open() {
			if j != way {
				others += len(d.Requests())
			}
		}
		w.Close()
		if !favourite.Running() {
			favourite.Start(t)
		}
		version, err := versionOf(moduleDigests(exit.Output), versions)
		if err != nil {
			t.Errorf("boot %d, published after %v: %v", tries, after.Round(time.Millisecond), err)
		}
		if !running || others == 0 {
			continue // it was over, or needed nothing any more
		}
		i++
		ended[[]string{"old", "new"}[(version+published)%2]]++
	}
	t.Logf("%d boots with a publish and a failover in the middle: modules of exactly one version in all; %s",
		n, strings.Join(listCounts(ended), ", "))
}

func listCounts(counts map[string]int) []string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%d the %s", counts[what], what))
	}
	return all
}
