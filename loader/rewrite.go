package loader

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"eboot"
	"eboot/bootproto/etf"
)

// moduleName is the loader's module, and the name its kernel process is started by.
const moduleName = "eboot_loader"

// argsVersion is the version of what eboot_loader:start/1 is given.
const argsVersion = 1

// Rewriting is what Rewrite needs to know beside the script.
type Rewriting struct {
	Digest    eboot.Digest // of the bundle's manifest
	Bundle    eboot.Ref
	Script    string // the script's path in the bundle
	ERTS      string // what the slave asked for in discovery
	SysConfig bool   // whether the bundle has a sys.config, for slaves that give none
	Provider  Provider
	Tree      Tree // the bundle's files
}

// Provider is how a release of mix is configured when it starts: Elixir's Config.Provider
// reads runtime.exs, and sys.config again, from the disk of the slave.
type Provider struct {
	Directory string // of both, in the bundle; empty: the release has none
	Restarts  bool   // it writes what it has read and restarts, which takes a disk
}

// FindProvider looks for a provider in the content of a bundle's sys.config, which stands in
// directory.
func FindProvider(sysConfig []byte, directory string) Provider {
	if !bytes.Contains(sysConfig, []byte("config_provider_init")) {
		return Provider{}
	}
	return Provider{Directory: directory, Restarts: restarts.Match(sysConfig)}
}

// restarts is how Mix.Release writes the field of Config.Provider.
var restarts = regexp.MustCompile(`reboot_system_after_config\s*=>\s*true`)

// Rewrite makes a script bring the loader, which then fetches everything else:
//
//   - before the first instruction that is neither preLoaded nor progress, the
//     loader is loaded and started as a kernel process, and told the latest progress;
//   - after each later progress it is told of it;
//   - when there is a sys.config, it is asked before kernel_load_completed to see to
//     it that init reads it. OTP 25 hangs in that call unless the module unicode is
//     loaded, so it is;
//   - "$VAR/rest" in a path becomes "$ROOT/$VAR/rest" for each boot variable that
//     stands for one directory of the bundle. The loader puts that directory, or what
//     the slave was given with -boot_var, in the place of $VAR.
//
// All else is copied byte for byte. The result is compressed. The error is ErrScript
// or ErrERTS: then the script is to be served as it is. A script that brings the loader
// already is ErrScript.
func Rewrite(script []byte, r Rewriting) ([]byte, error) {
	s, err := parse(script)
	if err != nil {
		return nil, fmt.Errorf("rewrite boot script: %w", err)
	}
	_, code, err := Build(r.ERTS)
	if err != nil {
		return nil, fmt.Errorf("rewrite boot script: %w", err)
	}
	out, err := s.splice(code, r)
	if err != nil {
		return nil, fmt.Errorf("rewrite boot script: %w", err)
	}
	return etf.Deflate(out), nil
}

// splice returns the script with our instructions. The error is ErrScript.
func (s *Script) splice(code []byte, r Rewriting) ([]byte, error) {
	if s.ours {
		return nil, fmt.Errorf("it has the loader already: %w", ErrScript)
	}
	w := writer{vars: s.variables(r.Tree)}
	var reached []byte // the latest progress
	started, completed, unicode := false, false, false
	for _, in := range s.instructions {
		if !started && in.kind != preLoaded && in.kind != progress {
			started = true
			w.start(code, r)
			if reached != nil {
				w.phase(reached)
			}
		}
		switch in.kind {
		case codePath:
			w.path(in)
			continue
		case primLoad:
			unicode = unicode || slices.Contains(in.names, "unicode")
		case kernelLoadCompleted:
			if r.SysConfig && !completed {
				w.configure(unicode)
			}
			completed = true
		}
		w.copy(in)
		if in.kind == progress {
			reached = in.arg
			if started {
				w.phase(reached)
			}
		}
	}
	if !started {
		return nil, fmt.Errorf("it loads nothing: %w", ErrScript)
	}
	out := make([]byte, 0, len(s.head)+len(w.list)+8)
	out = etf.AppendList(append(out, s.head...), w.n)
	return etf.AppendNil(append(out, w.list...)), nil
}

// writer writes the list of instructions.
type writer struct {
	vars []variable
	list []byte
	n    int // how many instructions there are in list
}

func (w *writer) copy(in instruction) {
	w.list = append(w.list, in.raw...)
	w.n++
}

// start appends {apply,{erlang,load_module,[eboot_loader,Code]}} and
// {kernelProcess,eboot_loader,{eboot_loader,start,[Args]}}.
func (w *writer) start(code []byte, r Rewriting) {
	b := w.apply("erlang", "load_module")
	b = etf.AppendAtom(etf.AppendList(b, 2), moduleName)
	b = append(etf.AppendBinary(b, int64(len(code))), code...)
	w.list = etf.AppendNil(b)

	w.n++
	b = etf.AppendAtom(etf.AppendTuple(w.list, 3), "kernelProcess")
	b = etf.AppendAtom(b, moduleName)
	b = etf.AppendAtom(etf.AppendTuple(b, 3), moduleName)
	b = etf.AppendList(etf.AppendAtom(b, "start"), 1)
	pairs := 6
	if r.Provider.Directory != "" {
		pairs++
	}
	b = etf.AppendList(b, pairs)
	b = etf.AppendInteger(pair(b, "version"), argsVersion)
	b = text(pair(b, "digest"), r.Digest.String())
	b = text(pair(b, "bundle"), r.Bundle.String())
	b = text(pair(b, "script"), r.Script)
	b = pair(b, "vars")
	if len(w.vars) > 0 {
		b = etf.AppendList(b, len(w.vars))
		for _, v := range w.vars {
			b = text(text(etf.AppendTuple(b, 2), v.name), v.directory)
		}
	}
	b = etf.AppendNil(b)
	b = etf.AppendAtom(pair(b, "config"), fmt.Sprint(r.SysConfig))
	switch {
	case r.Provider.Directory == "":
	case r.Provider.Restarts:
		b = etf.AppendAtom(pair(b, "provider"), "restart")
	default:
		parts := strings.Split(r.Provider.Directory, "/")
		b = etf.AppendList(pair(b, "provider"), len(parts))
		for _, part := range parts {
			b = text(b, part)
		}
		b = etf.AppendNil(b)
	}
	w.list = etf.AppendNil(etf.AppendNil(b))
}

// pair begins {Key,_}.
func pair(b []byte, key string) []byte { return etf.AppendAtom(etf.AppendTuple(b, 2), key) }

// text appends a binary.
func text(b []byte, s string) []byte { return append(etf.AppendBinary(b, int64(len(s))), s...) }

// apply begins {apply,{Module,Function,_}}; the list of arguments is to follow.
func (w *writer) apply(module, function string) []byte {
	w.n++
	b := etf.AppendAtom(etf.AppendTuple(w.list, 2), "apply")
	b = etf.AppendAtom(etf.AppendTuple(b, 3), module)
	return etf.AppendAtom(b, function)
}

// phase appends {apply,{eboot_loader,phase,[P]}}.
func (w *writer) phase(progress []byte) {
	b := etf.AppendList(w.apply(moduleName, "phase"), 1)
	w.list = etf.AppendNil(append(b, progress...))
}

// configure appends {apply,{eboot_loader,configure,[]}}, and {primLoad,[unicode]}
// before it unless it was loaded.
func (w *writer) configure(unicode bool) {
	if !unicode {
		w.n++
		b := etf.AppendAtom(etf.AppendTuple(w.list, 2), "primLoad")
		w.list = etf.AppendNil(etf.AppendAtom(etf.AppendList(b, 1), "unicode"))
	}
	w.list = etf.AppendNil(w.apply(moduleName, "configure"))
}

// path appends a path instruction with the variables that are known marked for the
// loader. When there are none it is copied.
func (w *writer) path(in instruction) {
	known := func(directory string) bool {
		name, _, ok := split(directory)
		return ok && slices.ContainsFunc(w.vars, func(v variable) bool { return v.name == name })
	}
	if !slices.ContainsFunc(in.names, known) {
		w.copy(in)
		return
	}
	w.n++
	b := etf.AppendAtom(etf.AppendTuple(w.list, 2), "path")
	b = etf.AppendList(b, len(in.dirs))
	for i, raw := range in.dirs {
		if known(in.names[i]) {
			b = etf.AppendName(b, "$ROOT/"+in.names[i])
		} else {
			b = append(b, raw...)
		}
	}
	w.list = etf.AppendNil(b)
}
