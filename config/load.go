package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"eboot"
	"eboot/internal/fsutil"
)

// maxFileSize bounds what Load reads.
const maxFileSize = 1 << 20

// Load reads the YAML file at path (empty: none), then the EBOOT_ variables of
// environ (NAME=VALUE, as os.Environ gives them), over Default, and checks the
// result. Variables that other parts of eboot read (the client's EBOOT_ADDRESS,
// EBOOT_TOKEN and so on, and those of the tests) are left alone.
//
// A file that cannot be read is the error of package os. Everything else that is
// wrong is reported in one error, a line each, beginning with FILE:LINE or the
// variable, and wraps eboot.ErrInvalid.
func Load(path string, environ []string) (Config, error) {
	var content []byte
	if path != "" {
		var err error
		if content, err = fsutil.ReadSmall(path, maxFileSize); err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
	}
	return parse(path, content, environ)
}

func parse(path string, content []byte, environ []string) (Config, error) {
	l := &loader{config: Default(), table: newKeyTable(), origin: map[string]string{}}
	l.readYAML(path, content)
	l.readEnviron(environ)
	if _, said := l.origin["cluster.expect"]; !said && len(l.config.Gossip.Seeds) > 0 {
		l.config.Cluster.Expect = 0
	}
	if len(l.errs) == 0 { // half of a configuration would only be reported twice
		for _, p := range l.config.problems() {
			if from, said := l.origin[p.key]; said {
				l.fail(from, "%s", p)
			} else {
				l.fail(path, "%s", p)
			}
		}
	}
	if len(l.errs) > 0 {
		return Config{}, errors.Join(l.errs...)
	}
	return l.config, nil
}

// loader is one Load under way.
type loader struct {
	config Config
	table  *keyTable
	origin map[string]string // by path of key: FILE:LINE or the variable that set it
	errs   []error
}

// fail notes an error; from is FILE:LINE, a variable or empty.
func (l *loader) fail(from, format string, args ...any) {
	if from != "" {
		from += ": "
	}
	l.errs = append(l.errs, fmt.Errorf("%s%s: %w", from, fmt.Sprintf(format, args...), eboot.ErrInvalid))
}

func (l *loader) field(k key) reflect.Value {
	return reflect.ValueOf(&l.config).Elem().FieldByIndex(k.index)
}

func (l *loader) readEnviron(environ []string) {
	variables := make(map[string]key, len(l.table.keys))
	names := make([]string, 0, len(l.table.keys))
	for _, k := range l.table.keys {
		variables[k.variable()] = k
		names = append(names, k.variable())
	}
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "EBOOT_") || readElsewhere(name) {
			continue
		}
		k, known := variables[name]
		switch {
		case !known:
			near := slices.MinFunc(names, func(a, b string) int { return editDistance(name, a) - editDistance(name, b) })
			l.fail(quoteUnlessPlain(name), "unknown variable; the nearest valid one is %s", near)
		case !utf8.ValidString(text):
			l.fail(name, "is not valid UTF-8")
		default:
			l.origin[k.path] = name
			l.setFromVariable(l.field(k), name, text)
		}
	}
}

// readElsewhere reports whether an EBOOT_ variable is not a key of ours: the
// settings of the client, and the switches of eboot's tests.
func readElsewhere(name string) bool {
	switch name {
	case "EBOOT_ADDRESS", "EBOOT_TOKEN", "EBOOT_CA_CERT", "EBOOT_CLIENT_CERT", "EBOOT_CLIENT_KEY", "EBOOT_REQUIRE_ERL":
		return true
	}
	return strings.HasPrefix(name, "EBOOT_TEST_") || serviceLink.MatchString(name)
}

// serviceLink matches what Kubernetes and Docker links put into the environment of a
// container beside a service named eboot.
var serviceLink = regexp.MustCompile(`^EBOOT_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)$`)

func (l *loader) setFromVariable(v reflect.Value, name, text string) {
	if v.Kind() != reflect.Slice {
		if !setText(v, text) {
			l.fail(name, "want %s, not %q", want(v.Type()), abbreviate(text))
		}
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, 4)
	if text != "" {
		for item := range strings.SplitSeq(text, ",") {
			list = reflect.Append(list, reflect.Zero(v.Type().Elem()))
			if item = strings.TrimSpace(item); !setText(list.Index(list.Len()-1), item) {
				l.fail(name, "want %s, separated by commas; not %q", want(v.Type()), abbreviate(item))
			}
		}
	}
	v.Set(list)
}

func quoteUnlessPlain(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) || len(name) > 80 {
		return fmt.Sprintf("%q", abbreviate(name))
	}
	return name
}

func abbreviate(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}
