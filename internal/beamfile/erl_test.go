package beamfile

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sums writes, for every module of the installation and every file after the directory, its
// path, its module and beam_lib:md5/1; of every eighth it writes a stripped and a compressed
// copy, and one with debug information and one of other line numbers of what is compiled here.
const sums = `
io:setopts([{encoding, unicode}]),
[Dir | More] = init:get_plain_arguments(),
Show = fun(File) ->
	{ok, {Module, MD5}} = beam_lib:md5(File),
	io:format("~ts ~ts ~s~n", [File, Module, [io_lib:format("~2.16.0b", [B]) || <<B>> <= MD5]])
end,
Copy = fun(Name, Bytes) ->
	File = filename:join(Dir, Name ++ ".beam"),
	ok = file:write_file(File, Bytes),
	Show(File)
end,
Files = filelib:wildcard(filename:join(code:lib_dir(), "*/ebin/*.beam")) ++ More,
lists:foldl(fun(File, N) ->
	Show(File),
	case N rem 8 of
		0 ->
			{ok, Bytes} = file:read_file(File),
			{ok, {_, Stripped}} = beam_lib:strip(Bytes),
			Base = filename:basename(File, ".beam"),
			Copy(Base ++ "-stripped", Stripped),
			Copy(Base ++ "-compressed", zlib:gzip(Bytes));
		_ -> ok
	end,
	N + 1
end, 0, Files),
Source = fun(Line) -> [{attribute, Line, module, 'm\x{e4}'}, {attribute, Line, export, [{f, 1}]},
	{function, Line, f, 1, [{clause, Line, [{var, Line, 'X'}], [], [{'fun', Line, {clauses, [{clause, Line, [], [], [{var, Line, 'X'}]}]}}]}]}] end,
[begin
	{ok, _, Code} = compile:forms(Source(Line), Options),
	Copy(Name, Code)
end || {Name, Line, Options} <- [{"here-plain", 1, []}, {"here-debug", 1, [debug_info]}, {"here-line", 77, [debug_info]}, {"here-compressed", 77, [compressed]}]],
halt().
`

// Every module of the OTP that is here has the sum that beam_lib makes of it; so have a stripped,
// a compressed, and a recompiled one.
func TestAgainstBeamLib(t *testing.T) {
	erl, err := exec.LookPath("erl")
	if err != nil {
		if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
			t.Fatal(err)
		}
		t.Skip("no Erlang here")
	}
	elixir, err := filepath.Glob("/usr/lib/elixir/lib/elixir/ebin/*.beam")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), erl, append([]string{"-noinput", "-eval", sums, "-extra", dir}, elixir...)...)
	cmd.Env = append(os.Environ(), "ERL_CRASH_DUMP_SECONDS=0")
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("erl: %v\n%s%s", err, problems.String(), out)
	}
	byName := map[string]string{}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, line := range lines {
		part := strings.Fields(line)
		if len(part) != 3 {
			t.Fatalf("erl says %q", line)
		}
		data, err := os.ReadFile(part[0])
		if err != nil {
			t.Fatal(err)
		}
		name, sum, err := CodeMD5(data)
		if err != nil || name != part[1] || hex.EncodeToString(sum[:]) != part[2] {
			t.Errorf("%s: %s %x, %v; beam_lib says %s %s", part[0], name, sum, err, part[1], part[2])
		}
		byName[strings.TrimSuffix(filepath.Base(part[0]), ".beam")] = part[2]
	}
	copies := 0
	for name, sum := range byName {
		for _, kind := range []string{"-stripped", "-compressed", "-debug", "-line"} {
			base, ok := strings.CutSuffix(name, kind)
			if original, there := byName[base]; ok && there && base != "here" {
				if copies++; original != sum {
					t.Errorf("%s: %s, and as it was %s", name, sum, original)
				}
			}
		}
	}
	for _, kind := range []string{"debug", "line", "compressed"} {
		if byName["here-"+kind] != byName["here-plain"] || byName["here-plain"] == "" {
			t.Errorf("compiled here: %s %q, plain %q", kind, byName["here-"+kind], byName["here-plain"])
		}
	}
	t.Logf("%d files, %d of them copies", len(lines), copies)
	if len(lines) < 100 || copies < 20 {
		t.Errorf("only %d files and %d copies were compared", len(lines), copies)
	}
}
