# For stages with Python: `source wheel.bash` behind common.sh.

# wheel_python NAME REQUIREMENTS: prints the path of a Python that has the wheel and what the file
# REQUIREMENTS names, with hashes. It is kept in target/gateways/NAME while that file stays the same.
# HUBROUTER_WHEEL: a wheel that is built.
wheel_python() {
  local venv=$root/target/gateways/$1 requirements=$root/tests/gateways/$2 wheel
  wheel=${HUBROUTER_WHEEL:-$("$root/bindings/python/wheel.sh" release)}
  if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
      -r "$requirements" >&2
    cp "$requirements" "$venv/requirements.txt"
  fi
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall \
    "$wheel" >&2
  echo "$venv/bin/python"
}
