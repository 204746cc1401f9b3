package test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"eboot"
	"eboot/internal/testutil"
)

// behaviourTree is an installation with what a loader can be asked for beside modules.
func behaviourTree(t testing.TB, erl testutil.Erlang) string {
	t.Helper()
	tree := smallTree(t, erl)
	write(t, tree+"/etc/text", "a text")
	write(t, tree+"/etc/empty", "")
	write(t, tree+"/etc/with space", "spaced")
	write(t, tree+"/etc/program", "#!/bin/sh\n")
	if err := os.Chmod(tree+"/etc/program", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, tree+"/etc/large", strings.Repeat("large ", 200_000))
	write(t, tree+"/greek/λόγος", "not ASCII")
	write(t, tree+"/λ/text", "below a name that is not ASCII")
	link(t, "text", tree+"/etc/link")
	link(t, "../greek", tree+"/etc/dirlink")
	zipCreate(t, erl, tree, `{ok, _} = zip:create("app-1.ez", [{"app-1/ebin/m.beam", <<"beam">>}, {"app-1/ebin/app.app", <<"app">>}], [])`)
	write(t, tree+"/broken.ez", "no archive")
	mustDir(t, tree, "mixed")
	write(t, tree+"/mixed/plain", "plain")
	zipCreate(t, erl, tree+"/mixed", `{ok, _} = zip:create("inner.ez", [{"inner/file", <<"inner">>}], [])`)
	return tree
}

// behaviourEval asks the loader for much and prints each question with its answer, on a line of
// its own. Contents are printed as size and digest.
const behaviourEval = `
	R = code:root_dir(),
	Show = fun
		({ok, B}) when is_binary(B) -> {ok, byte_size(B), erlang:crc32(B)};
		({ok, B, N}) when is_binary(B) -> {ok, byte_size(B), erlang:crc32(B), N};
		(X) -> X end,
	Ask = fun(F, A) ->
		Answer = try Show(apply(erl_prim_loader, F, A)) catch C:E -> {C, E} end,
		io:format("ask ~w ~0p: ~0p~n", [F, A, Answer]) end,
	Long = lists:duplicate(300, $a),
	Below = ["", "/", "/.", "/..", "//", "/lib", "/lib/", "/lib//", "//lib", "/./lib/.", "/lib/../lib", "/../" ++ filename:basename(R) ++ "/lib",
		"/lib/../../../../../etc/passwd", "/nothing", "/nothing/below", "/nothing/..", "/nothing/../lib", "/etc", "/etc/text", "/etc/text/", "/etc/text/.", "/etc/text/..",
		"/etc/text/below", "/etc/text/../text", "/etc/empty", "/etc/with space", "/etc/program", "/etc/large", "/etc/link", "/etc/link/", "/etc/dirlink", "/etc/dirlink/",
		"/etc/dirlink/\x{3bb}\x{3cc}\x{3b3}\x{3bf}\x{3c2}", "/etc/dirlink/..", "/greek", "/greek/\x{3bb}\x{3cc}\x{3b3}\x{3bf}\x{3c2}", "/greek/nothing", "/greek/\x{3bb}",
		"/\x{3bb}", "/\x{3bb}/text", "/\x{3bb}/nothing", "/\x{3bb}\x{3bb}", "/\x{e4}", "/app-1.ez", "/app-1.ez/", "/app-1.ez/app-1", "/app-1.ez/app-1/ebin",
		"/app-1.ez/app-1/ebin/m.beam", "/app-1.ez/app-1/ebin/nothing", "/app-1.ez/nothing", "/app-1.ez/..", "/app-1.ez/../lib", "/nothing.ez", "/nothing.ez/x", "/broken.ez", "/broken.ez/x",
		"/mixed", "/mixed/plain", "/mixed/inner.ez", "/mixed/inner.ez/inner/file", "/mixed/plain.ez/x", "/etc/text.ez", "/etc/text.ez/x",
		"/bin", "/bin/start.boot", "/bin/nothing.boot", "/sys.config", "/" ++ Long, "/lib/" ++ Long ++ "/x", "/a\\b", "/lib\\", "/etc/te*t", "/\n", "/etc/text\x{0}x",
		"x", "x/lib", ".", ".boot", "/$ROOT", "/$LIB/x"],
	Names = [R ++ B || B <- Below] ++ ["lib", "./lib", "lib/", "lib/.", "/lib", "../lib", "../../etc", ".", "./", "..", "../", "", "/", "//", "/.", "/..", "/etc", "/etc/passwd",
		"/nonexistent", "/nonexistent/", "etc/text", "etc/link", "etc/nothing", "text", "lists.beam", "kernel.app", "nothing.beam", "lists", "-", "~", "C:/x",
		"greek/\x{3bb}\x{3cc}\x{3b3}\x{3bf}\x{3c2}", "app-1.ez/app-1", list_to_binary(R ++ "/lib"), <<"lib">>, <<>>, lib, 'etc/text', nothing, '', {lib}, 17, [lib], [[$l], "ib"],
		[-1], [16#110000], make],
	[Ask(F, [N]) || N <- Names, F <- [get_file, list_dir, read_file_info, read_link_info]],
	Ask(get_cwd, []), Ask(get_cwd, ["C:"]), Ask(get_cwd, ["nothing"]), Ask(get_cwd, [c]),
	Ask(get_path, []),
	{ok, Path} = erl_prim_loader:get_path(),
	[begin Ask(set_path, [P]), Ask(get_path, []), [Ask(get_file, [N]) || N <- ["text", "m.beam", "nothing", "lists.beam", text, "etc/text"]] end ||
		P <- [[], ["etc"], [R ++ "/etc"], [R ++ "/nothing", R ++ "/etc/"], ["../etc", "."], [R ++ "/app-1.ez/app-1/ebin"], [etc], ["\x{3bb}"], not_a_list, Path]],
	Load = fun(M, N, B) -> case M of crash -> error(wanted); bad -> {error, M}; odd -> M; _ -> {ok, {N, byte_size(B)}} end end,
	Sorted = fun(X) -> case X of {ok, {Good, Bad}} -> {lists:sort(Good), lists:sort(Bad)}; _ -> X end end,
	[io:format("ask get_modules ~0p: ~0p~n", [A, try Sorted(apply(erl_prim_loader, get_modules, A)) catch C:E -> {C, E} end]) || A0 <- [
		[[]], [[lists]], [[lists, nothing, application]], [[lists], [R ++ "/nothing"]], [[m], [R ++ "/app-1.ez/app-1/ebin"]], [[lists, gen], Path]],
		A <- [[hd(A0), Load | tl(A0)]]],
	case erlang:function_exported(erl_prim_loader, read_file, 1) of
		true -> [Ask(read_file, [N]) || N <- Names];
		false -> ok end,
	[Ask(F, [N]) || F <- [get_file], N <- [code:which(lists), code:which(gen)]]`

// TestLoaderBehavesAsTheStockOne asks the loader of a stock slave and ours the same questions
// about the same bundle: the answers are equal.
func TestLoaderBehavesAsTheStockOne(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startEboot(t, erl, behaviourTree(t, erl), []string{slaveRoot, slaveRoot + "/deep/root"})
	answers := map[string][]string{}
	for loader, check := range map[string]string{eboot.LoaderStock: loaderIsStock, eboot.LoaderEboot: loaderIsOurs} {
		setLoader(t, s.Client, loader)
		exit := runNode(t, erl, bootDeadline, check+","+behaviourEval, s.Address)
		for line := range strings.Lines(exit.Output) {
			// A fun is printed with a number of its node.
			if strings.HasPrefix(line, "ask ") {
				answers[loader] = append(answers[loader], anonymous(strings.TrimSpace(line)))
			}
		}
	}
	stock, ours := answers[eboot.LoaderStock], answers[eboot.LoaderEboot]
	if len(stock) < 400 || len(stock) != len(ours) {
		t.Fatalf("%d answers of the stock loader, %d of ours", len(stock), len(ours))
	}
	different := 0
	for i := range stock {
		// The stock one takes atoms in get_file alone.
		if stock[i] == ours[i] || atomName.MatchString(stock[i]) && strings.HasSuffix(stock[i], ": error") {
			continue
		}
		if different++; different <= 40 {
			t.Errorf("stock: %s\n ours: %s", stock[i], ours[i])
		}
	}
	t.Logf("%d questions, %d answers differ", len(stock), different)
}

var atomName = regexp.MustCompile(`^ask (list_dir|read_file|read_file_info|read_link_info) \[('.*'|[a-z]+)\]: `)

// anonymous takes the numbers out of funs.
func anonymous(line string) string {
	before, rest, found := strings.Cut(line, "#Fun<")
	if !found {
		return line
	}
	_, after, _ := strings.Cut(rest, ">")
	return before + "#Fun" + anonymous(after)
}

// What kills the stock loader of a node that boots from a server has an answer.
func TestLoaderSurvivesWhatKillsTheStockOne(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	runNode(t, erl, bootDeadline, loaderIsOurs+`,
		Loader = whereis(erl_prim_loader),
		{error, enotsup} = case erlang:function_exported(erl_prim_loader, set_primary_archive, 4) of
			true -> erl_prim_loader:set_primary_archive(undefined, undefined, undefined, fun(X) -> X end);
			false -> {error, enotsup} end,
		ok = case erlang:function_exported(erl_prim_loader, purge_archive_cache, 0) of
			true -> erl_prim_loader:purge_archive_cache();
			false -> ok end,
		[Loader ! Junk || Junk <- [junk, {}, {self(), junk}, {self(), {get_file}}, {get_file, "x"}, {tcp, a, b}, {udp, 1, 2, 3, 4}, {'EXIT', spawn(fun() -> ok end), x}, {not_a_pid, {get_path, []}}]],
		{ok, _} = erl_prim_loader:get_path(),
		{ok, _, _} = erl_prim_loader:get_file(code:which(lists)),
		Loader = whereis(erl_prim_loader)`, s.Address)
}

// Nodes whose bundle has a sys.config are configured by it without a flag, unless they say
// otherwise themselves.
func TestLoaderBringsTheConfiguration(t *testing.T) {
	erl := testutil.RequireErl(t)
	tree := smallTree(t, erl)
	write(t, tree+"/releases/1/sys.config", `[{kernel, [{from, bundle}]}].`)
	boot, err := os.ReadFile(erl.BootScript())
	if err != nil {
		t.Fatal(err)
	}
	write(t, tree+"/releases/1/start.boot", string(boot))
	write(t, tree+"/other.config", `[{kernel, [{from, other}]}].`)
	s := startEboot(t, erl, tree, []string{slaveRoot})
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"OK", nil, "bundle"},
		{"FlagWins", []string{"-config", slaveRoot + "/other"}, "other"},
		{"ValueWins", []string{"-kernel", "from", "flag"}, "flag"},
	} {
		for _, embedded := range []bool{false, true} {
			t.Run(tt.name+"/"+modeName(embedded), func(t *testing.T) {
				checkNode(t, testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{s.Address}, Root: slaveRoot, Embedded: embedded, Args: tt.args,
					Eval: loaderIsOurs + `, {ok, ` + tt.want + `} = application:get_env(kernel, from), io:format("went well~n"), halt(0).`}), bootDeadline)
			})
		}
	}
}

// What a slave reports of its boot is what operators see.
func TestLoaderReports(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	for _, embedded := range []bool{false, true} {
		trigger := filepath.Join(t.TempDir(), "go")
		node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{s.Address}, Root: slaveRoot, Embedded: embedded,
			Eval: loaderIsOurs + `, Wait = fun Wait() -> case prim_file:read_file_info("` + trigger + `") of {ok, _} -> ok; _ -> receive after 5 -> ok end, Wait() end end,
				Wait(), io:format("went well~n"), halt(0).`})
		testutil.Poll(t, bootDeadline, "the boot is to be reported as started", func() bool {
			if node.Exited() {
				t.Fatalf("node ended:\n%s", node.Output())
			}
			boots, err := s.Client.Boots(t.Context(), bootSlaveAddress)
			return err == nil && len(boots) > 0 && boots[0].Phase == eboot.BootStarted && boots[0].Cured != nil && boots[0].Cured.Mode == modeName(embedded)
		})
		all, err := s.Client.Boots(t.Context(), bootSlaveAddress)
		if err != nil {
			t.Fatal(err)
		}
		b := all[0]
		var phases []string
		for _, p := range b.Cured.Phases {
			phases = append(phases, p.Phase)
		}
		for _, want := range []string{"kernel_load_completed", "modules_loaded", "init_kernel_started", "started"} {
			if !slices.Contains(phases, want) {
				t.Errorf("%s: phases %v, without %s", modeName(embedded), phases, want)
			}
		}
		if b.Loader != eboot.LoaderEboot || b.Loaded.IsZero() || b.Bundle.String() != "otp@1" || b.Cured.Switches != 0 {
			t.Errorf("%s: boot %+v", modeName(embedded), b)
		}
		t.Logf("%s: %v until started, %d requests, %d answered by the slave, phases %v", modeName(embedded), b.Loaded.Sub(b.Began), b.Requests, b.Cured.Local, phases)
		write(t, trigger, "")
		checkNode(t, node, 2*bootDeadline)
	}
}
